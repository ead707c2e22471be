"""The checkpoints that ship with the package, on the samples that ship with it, on every version of transformers."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.samples.embedded import embedded_samples, micro_checkpoints

pytestmark = pytest.mark.slow

# transformers 5.23, 5.4.0 and 4.57.6 give the same float64 value.
RECORDED = {"step-5": 1.8262014556131987, "step-300": 2.1040459190623713}


@pytest.mark.parametrize("folder", micro_checkpoints(), ids=lambda folder: folder.name)
def test_packaged_checkpoints_give_the_recorded_values(folder):
    """Resizing with torchvision in place of PIL moves MIR by 1.2e-5; float32 on another processor by less than 1e-6."""
    adapter = load_adapter(folder, LoadOptions(device="cpu"))
    result = measure(adapter, embedded_samples(20), checkpoint=folder.name, with_uncertainty=False)
    assert result.mir == pytest.approx(RECORDED[folder.name], rel=2e-6)


def test_token_types_of_a_plain_fast_tokenizer_do_not_stop_generation():
    """Below transformers 5 these checkpoints' tokenizer gives them by itself, and Llama does not take them."""
    adapter = load_adapter(micro_checkpoints()[0], LoadOptions(device="cpu"))
    prompt = Prompt("What?", (embedded_samples(1).samples[0].open_image(),))
    expected = adapter.generate([prompt], max_new_tokens=3)
    adapter._loaded.processor.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert adapter.generate([prompt], max_new_tokens=3) == expected


def test_a_folder_of_a_later_major_version_is_refused_by_naming_that_version(tmp_path):
    folder = tmp_path / "later"
    shutil.copytree(micro_checkpoints()[0], folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "99.1.0"}), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    weights.pop("multi_modal_projector.linear_1.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MirError, match=r"linear_1\.bias.*transformers 99\.1\.0"):
        load_adapter(folder, LoadOptions(device="cpu"))
