"""Which files of a checkpoint decide whether it is the same checkpoint, and how much of them is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mir_plugin.files import fingerprint
from mir_plugin.files.fingerprint import SAMPLED_BYTES, WHOLE_UP_TO_BYTES, folder_fingerprint

N_NUMBERS = 600_000  # four bytes each: five tensors are more than is read whole, and none lies at an end only


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer-{k}": torch.randn(N_NUMBERS, generator=generator) for k in range(5)}


@pytest.mark.parametrize("changed", range(5))
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_training_any_one_tensor_of_a_large_file_makes_another_checkpoint(
    name: str, changed: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(weights(), path)
    assert path.stat().st_size > max(WHOLE_UP_TO_BYTES, 3 * SAMPLED_BYTES)
    before = folder_fingerprint([tmp_path])
    trained = weights()
    trained[f"layer-{changed}"] *= 1.001
    save(trained, path)
    assert folder_fingerprint([tmp_path]) != before
    save(weights(), path)
    assert folder_fingerprint([tmp_path]) == before


def test_only_a_small_part_of_a_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    read = 0
    opened = Path.open

    class Counting:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def read(self, n: int = -1) -> bytes:
            nonlocal read
            content: bytes = self.file.read(n)  # type: ignore[attr-defined]
            read += len(content)
            return content

    monkeypatch.setattr(Path, "open", lambda path, *arguments: Counting(opened(path, *arguments)))
    folder_fingerprint([tmp_path])
    assert 2 * SAMPLED_BYTES < read < 2 * SAMPLED_BYTES + 10_000


@pytest.mark.parametrize("header", [b"not json", b"[1, 2]", b'{"a": {"data_offsets": [5, -9]}}', b'{"a": {}}'])
def test_a_damaged_header_is_left_to_the_loader(header: bytes, tmp_path: Path) -> None:
    content = len(header).to_bytes(8, "little") + header + bytes(fingerprint.WHOLE_UP_TO_BYTES)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert len(folder_fingerprint([tmp_path])) == 16
