"""`mir inspect` says yes exactly where `mir run` loads and encodes, and reads no weight for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from adapters.test_huggingface_checkpoint import saved
from PIL import Image
from safetensors.torch import load_file, save_file

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.model_adapters.weights.stored import StoredTensor
from mir_plugin.samples.sample_set import Sample

from golden_data import GOLDEN, require_golden

pytestmark = pytest.mark.slow

SAMPLE = Sample("one", Image.new("RGB", (50, 40), "red"), "A cat sat.")
GOLDEN_MODELS = sorted(path.parent for path in GOLDEN.rglob("config.json"))


def error_of(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except MirError as error:
        return str(error)
    return None


def inspected(checkpoint: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What `mir inspect` says against a checkpoint; fails if it reads a tensor."""

    def attempt() -> None:
        opened = open_checkpoint(checkpoint, options)
        opened.inspect()
        opened.check()

    with monkeypatch.context() as patch:
        patch.setattr(StoredTensor, "read", lambda self: pytest.fail(f"inspect read {self.origin}"))
        return error_of(attempt)


def run(checkpoint: Path, options: LoadOptions) -> str | None:
    def attempt() -> None:
        adapter = open_checkpoint(checkpoint, options).load()
        adapter.forward(adapter.encode([SAMPLE]))

    return error_of(attempt)


@pytest.mark.parametrize("folder", GOLDEN_MODELS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_both_say_the_same_of_every_recorded_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LoadOptions(device="cpu")
    said, happened = inspected(folder, options, monkeypatch), run(folder, options)
    assert (said is None) == (happened is None), f"inspect: {said}\nrun: {happened}"


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llava", tmp_path_factory.mktemp("huggingface"))


@pytest.fixture
def checkpoints(huggingface: Path, tmp_path: Path) -> Iterator[Mapping[str, tuple[Path, LoadOptions]]]:
    """Writable copies of a checkpoint of each kind."""
    full, projector = require_golden("llava/llava_full"), require_golden("llava/llava_projector")
    copies = {
        "huggingface": (huggingface, {}),
        "full": (full / "model", {"vision_tower": full / "vision_tower"}),
        "projector": (
            projector / "model",
            {"base_llm": projector / "base_llm", "vision_tower": tmp_path / "tower"},
        ),
    }
    shutil.copytree(projector / "vision_tower", tmp_path / "tower", copy_function=shutil.copyfile)
    yield {
        name: (
            Path(shutil.copytree(source, tmp_path / name, copy_function=shutil.copyfile)),
            LoadOptions(device="cpu", **options),
        )
        for name, (source, options) in copies.items()
    }


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reshape_weights(folder: Path, key: str) -> None:
    state = load_file(folder / "model.safetensors")
    state[next(name for name in state if key in name)] = torch.ones(3, 3)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def drop_weights(folder: Path, key: str) -> None:
    state = {name: value for name, value in load_file(folder / "model.safetensors").items() if key not in name}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def quantise(folder: Path, key: str) -> None:
    state = load_file(folder / "model.safetensors")
    state = {name: value.to(torch.int8) if key in name else value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


BROKEN: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "whole": ("huggingface", lambda folder: None),
    "whole full": ("full", lambda folder: None),
    "whole projector": ("projector", lambda folder: None),
    "another shape": ("huggingface", lambda folder: reshape_weights(folder, "q_proj.weight")),
    "another shape, full": ("full", lambda folder: reshape_weights(folder, "up_proj.weight")),
    "missing layer": ("huggingface", lambda folder: drop_weights(folder, "layers.0.")),
    "missing norm, full": ("full", lambda folder: drop_weights(folder, "model.norm.")),
    "quantised": ("huggingface", lambda folder: quantise(folder, "q_proj.weight")),
    "quantised, full": ("full", lambda folder: quantise(folder, "q_proj.weight")),
    "no tokenizer": ("huggingface", lambda folder: (folder / "tokenizer.json").unlink()),
    "no processor": ("huggingface", lambda folder: (folder / "processor_config.json").unlink()),
    "damaged tokenizer": ("full", lambda folder: (folder / "tokenizer.model").write_bytes(b"\x0enot")),
    "another model_type": ("full", lambda folder: rewrite(folder / "config.json", model_type="bert")),
    "more heads": ("full", lambda folder: rewrite(folder / "config.json", num_attention_heads=7)),
    "anyres": ("full", lambda folder: rewrite(folder / "config.json", image_aspect_ratio="anyres")),
    "another projector": ("projector", lambda folder: rewrite(folder / "config.json", mm_projector_type="mlp3x_gelu")),
    "another image token": ("huggingface", lambda folder: rewrite(folder / "config.json", image_token_index=5)),
    "no room": ("full", lambda folder: rewrite(folder / "config.json", max_position_embeddings=20)),
    "another width of pictures": (
        "projector",
        lambda folder: rewrite(folder.parent / "tower" / "preprocessor_config.json", crop_size=24),
    ),
    "no preprocessor": ("projector", lambda folder: (folder.parent / "tower" / "preprocessor_config.json").unlink()),
    "impossible colours": ("huggingface", lambda folder: _colours(folder)),
}


def _colours(folder: Path) -> None:
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_std"] = [0, 0, 0]
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("name", BROKEN)
def test_both_say_the_same_of_what_is_broken(
    name: str, checkpoints: Mapping[str, tuple[Path, LoadOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, breaks = BROKEN[name]
    folder, options = checkpoints[kind]
    breaks(folder)
    said, happened = inspected(folder, options, monkeypatch), run(folder, options)
    assert (said is None) == (happened is None), f"inspect: {said}\nrun: {happened}"
    assert (said is None) == name.startswith("whole"), said
