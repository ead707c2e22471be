"""Layouts from public bug reports, each with its value to the four decimals that are known.

The other layouts have theirs in ``test_layouts_on_disk`` and ``test_huggingface_sources``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.results import MirConfig
from mir_plugin.samples.embedded import embedded_samples, micro_checkpoints
from mir_plugin.samples.sample_set import SampleSet

from golden_data import REPOSITORY, require_golden

pytestmark = pytest.mark.slow

CASES = REPOSITORY / "tests" / "cases"
ROUNDED = 5e-5  # right values are known to four decimals
Built = tuple[Path, dict[str, Any]]


def copy_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return target


def recorded_samples() -> SampleSet:
    folder = require_golden("llava/llava_lora") / "samples"
    return SampleOptions(folder, folder, None, False, None, 0).choose()


def merged_with_its_adapter_beside(folder: Path) -> Built:
    checkpoint = copy_of(micro_checkpoints()[0], folder / "merged")
    case = copy_of(CASES / "hf_merged_with_adapter_left", checkpoint)
    settings = json.loads((case / "adapter_config.json").read_text(encoding="utf-8"))
    weights = {name: weight.float() for name, weight in load_file(checkpoint / "model.safetensors").items()}
    factors = load_file(checkpoint / "adapter_model.safetensors")
    for name, down in factors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.model.language_model.").removesuffix(".lora_A.weight")
            [key] = [key for key in weights if "language_model" in key and key.endswith(f"{module}.weight")]
            up = factors[name.replace("lora_A", "lora_B")]
            weights[key] += up @ down * (settings["lora_alpha"] / settings["r"])
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint, {}


def llava_1_6(folder: Path) -> Built:
    checkpoint = copy_of(require_golden("llava/llava_full") / "model", folder / "llava-v1.6")
    shutil.copyfile(CASES / "llava16_original" / "config.json", checkpoint / "config.json")
    state = load_file(checkpoint / "model.safetensors")
    newline = load_file(CASES / "llava16_original" / "image_newline.safetensors")
    save_file(state | newline, checkpoint / "model.safetensors")
    return checkpoint, {"vision_tower": require_golden("llava/llava_lora") / "vision_tower"}


def stage_1(name: str) -> Callable[[Path], Built]:
    def build(folder: Path) -> Built:
        place = copy_of(CASES / "llava_qwen_siglip", folder / "stage1")
        recorded = require_golden("llava/llava_projector")
        shutil.copyfile(recorded / "model" / "mm_projector.bin", place / name / "mm_projector.bin")
        base = place / "base" if name == "pretrain" else require_golden("llava/llava_lora") / "base_llm"
        return place / name, {"base_llm": base}  # config.json names the tower, which lies beside

    return build


@pytest.mark.parametrize(
    ("build", "samples", "right"),
    [
        pytest.param(merged_with_its_adapter_beside, lambda: embedded_samples(8), 1.6742, marks=pytest.mark.full),
        (llava_1_6, recorded_samples, 0.4565),
        (stage_1("pretrain"), recorded_samples, 3.4237),
        (stage_1("pretrain_llama"), recorded_samples, 0.6620),
    ],
    ids=["merged, adapter left", "LLaVA-1.6", "Qwen2 and SigLIP", "LLaMA and SigLIP"],
)
def test_a_layout_has_the_value_that_is_known(
    tmp_path: Path, build: Callable[[Path], Built], samples: Callable[[], SampleSet], right: float
) -> None:
    checkpoint, options = build(tmp_path)
    adapter = open_checkpoint(checkpoint, LoadOptions(device="cpu", **options)).load()
    found = measure(adapter, samples(), MirConfig(), checkpoint="case", with_uncertainty=False).mir
    assert found == pytest.approx(right, abs=ROUNDED)


def test_a_base_that_transformers_5_saved_is_said_to_state_another_rotation(tmp_path: Path) -> None:
    checkpoint, options = stage_1("pretrain")(tmp_path)
    note = open_checkpoint(checkpoint, LoadOptions(**options)).inspect()["rotation"]
    assert "1000000.0" in note and "10000.0" in note
