"""Which files of a checkpoint decide whether it is the same checkpoint: all that a loader may read, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.files import fingerprint
from mir_plugin.files.fingerprint import file_digest, folder_fingerprint
from mir_plugin.model_adapters.weights.module_fingerprint import module_fingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name in ("vision_tower", "checkpoint-20", "global_step20"):
        (folder / name).mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(fingerprint.REMEMBERED_FROM_BYTES + 1))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "chat_template.jinja", "modeling_own.py", "tokenizer.model", "merges.txt",
        "mm_projector.bin", "adapter_model.bin", "vision_tower/model.safetensors", "weights.gguf", "vocab",
    ],
)  # fmt: skip
def test_every_file_that_a_loader_may_read_counts(name: str, checkpoint: Path) -> None:
    before = folder_fingerprint([checkpoint])
    (checkpoint / name).write_bytes(b"one")
    first = folder_fingerprint([checkpoint])
    (checkpoint / name).write_bytes(b"two")
    assert len({before, first, folder_fingerprint([checkpoint])}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "optimizer.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", ".gitattributes",
        "checkpoint-20/model.safetensors", "global_step20/mp_rank_00_model_states.pt", "mir.json",
    ],
)  # fmt: skip
def test_what_a_trainer_leaves_beside_the_weights_does_not_count(name: str, checkpoint: Path) -> None:
    before = folder_fingerprint([checkpoint])
    (checkpoint / name).write_bytes(b"one")
    assert folder_fingerprint([checkpoint]) == before


def test_one_bit_anywhere_in_a_large_file_makes_another_checkpoint(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    digests = {folder_fingerprint([checkpoint])}
    for position in (0, len(content) // 3, len(content) - 1):
        content[position] ^= 1
        path.write_bytes(content)
        digests.add(folder_fingerprint([checkpoint]))
    assert len(digests) == 4


def test_a_write_that_sets_the_time_back_is_noticed(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    stat, before = path.stat(), file_digest(path)
    with path.open("r+b") as file:
        file.write(b"changed")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path) != before


def test_a_large_file_is_read_once_for_several_commands(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint / "model.safetensors"
    digest = file_digest(path)
    monkeypatch.setattr(fingerprint, "_hash", lambda _: pytest.fail("read again"))
    assert file_digest(path) == digest


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 32])
def test_a_damaged_or_unwritable_cache_costs_a_second_reading_only(
    damage: bytes, checkpoint: Path, own_cache: Path
) -> None:
    path = checkpoint / "model.safetensors"
    digest = file_digest(path)
    [kept] = (own_cache / "mir-plugin" / "digests").iterdir()
    kept.write_bytes(damage)
    assert file_digest(path) == digest
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("no folder")
    assert file_digest(path) == digest


def test_a_file_that_changes_while_it_is_read_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint / "model.safetensors"
    whole = fingerprint._hash

    def overwritten(path: Path) -> str:
        path.write_bytes(b"new weights")
        return whole(path)

    monkeypatch.setattr(fingerprint, "_hash", overwritten)
    with pytest.raises(MirError, match=r"model\.safetensors changed"):
        file_digest(path)


def test_a_name_moved_from_one_file_to_another_counts(checkpoint: Path) -> None:
    (checkpoint / "a.json").write_text("1")
    (checkpoint / "b.json").write_text("2")
    before = folder_fingerprint([checkpoint])
    (checkpoint / "a.json").write_text("2")
    (checkpoint / "b.json").write_text("1")
    assert folder_fingerprint([checkpoint]) != before


def test_where_a_folder_lies_does_not_count(checkpoint: Path, tmp_path: Path) -> None:
    before = folder_fingerprint([checkpoint])
    assert folder_fingerprint([checkpoint.rename(tmp_path / "elsewhere")]) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_one_number_in_the_middle_of_a_parameter_makes_another_model(dtype: torch.dtype) -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(64, 64, dtype=dtype), requires_grad=False)])
    before = module_fingerprint(model)
    assert module_fingerprint(model) == before
    with torch.no_grad():
        model[0][31, 17] = 1
    assert module_fingerprint(model) != before


def test_the_dtype_of_a_parameter_counts() -> None:
    digests = [
        module_fingerprint(nn.ParameterList([nn.Parameter(torch.zeros(4, dtype=dtype))]))
        for dtype in (torch.float16, torch.bfloat16)
    ]
    assert digests[0] != digests[1]
