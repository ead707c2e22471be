"""Checkpoint folders in the Hugging Face format: what is recognised, what is refused, what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from adapters.tiny_models import TINY_MODELS

from mir_plugin.engine.features import layer_features
from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, load_adapter, open_checkpoint
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.huggingface.adapter import load as load_folder
from mir_plugin.model_adapters.recognition import CheckpointFolder, is_huggingface
from mir_plugin.samples.sample_set import Sample

pytestmark = pytest.mark.slow

SAMPLE = Sample(
    "one", PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)), "A cat sat."
)
CPU = LoadOptions(device="cpu")


def load(folder: Path, options: LoadOptions) -> HuggingFaceAdapter:
    return load_folder(CheckpointFolder.read(folder), options)


def saved(family: str, folder: Path) -> Path:
    tiny = TINY_MODELS[family]()
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llava", tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "idefics3"])
def test_a_saved_checkpoint_gives_the_features_of_the_model_in_memory(family: str, tmp_path: Path) -> None:
    tiny = TINY_MODELS[family]()
    adapter = load_adapter(saved(family, tmp_path / "any-name"), CPU)
    assert adapter.family == "huggingface"
    in_memory = layer_features(from_loaded(tiny.model, tiny.processor), [SAMPLE])
    for loaded, expected in zip(layer_features(adapter, [SAMPLE]), in_memory, strict=True):
        assert torch.equal(loaded.vision, expected.vision)
        assert torch.equal(loaded.text, expected.text)


def test_loading_chooses_the_pil_backend_and_the_dtype_asked_for(llava_folder: Path) -> None:
    facts = load(llava_folder, LoadOptions(device="cpu", dtype="bfloat16")).facts
    assert facts["image_processor_class"].endswith("Pil")
    assert facts["dtype"] == "bfloat16"


def test_an_original_llava_folder_is_not_taken_for_a_hugging_face_one(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="llava", mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert not is_huggingface(CheckpointFolder.read(tmp_path))


def test_a_language_model_is_not_recognised(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="llama")
    assert not is_huggingface(CheckpointFolder.read(tmp_path))


def test_a_saved_checkpoint_is_recognised_by_its_config(llava_folder: Path) -> None:
    assert open_checkpoint(llava_folder).spec.name == "huggingface"


def test_code_in_the_folder_does_not_run_unless_asked_for(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="own", auto_map={"AutoModelForImageTextToText": "modeling_own.Own"})
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('the code ran')")
    assert is_huggingface(CheckpointFolder.read(tmp_path))
    with pytest.raises(MirError, match="--trust-remote-code"):
        load(tmp_path, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"model\.multi_modal_projector\.linear_1\.weight\. .* random"),
        ("unknown", r"model\.extra"),
        ("shape", r"linear_1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_naming_the_key(tmp_path: Path, change: str, message: str) -> None:
    folder = saved("llava", tmp_path)
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    [key] = [name for name in weights if name.endswith("linear_1.weight")]
    if change == "missing":
        del weights[key]
    elif change == "unknown":
        weights["model.extra"] = torch.zeros(2)
    else:
        weights[key] = torch.zeros(3, 3)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MirError, match=message):
        load(folder, CPU)


def test_a_truncated_weights_file_is_an_error(tmp_path: Path) -> None:
    path = saved("llava", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MirError, match="truncated or damaged"):
        load(tmp_path, CPU)


def test_a_folder_without_image_processor_is_an_error(tmp_path: Path) -> None:
    tiny = TINY_MODELS["llava"]()
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MirError, match="processor"):
        load(tmp_path, CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoadOptions(base_llm=Path("x")), "--base-llm does not apply"),
        (LoadOptions(vision_tower=Path("x")), "--vision-tower does not apply"),
        (LoadOptions(device="cpu", device_memory=1), "one decoder layer"),
        (LoadOptions(device="cpu", dtype="int8"), "dtype is 'int8'"),
        (LoadOptions(device="nowhere"), "device is 'nowhere'"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(llava_folder: Path, options: LoadOptions, message: str) -> None:
    with pytest.raises(MirError, match=message):
        load(llava_folder, options)


def write_config(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))
