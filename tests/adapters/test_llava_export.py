"""A transformers LLaVA with MoCa, written in the original layout, is read back as an original checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from adapters.tiny_models import TINY_MODELS
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, load_adapter, open_checkpoint
from mir_plugin.model_adapters.llava.export import export_llava
from mir_plugin.model_adapters.llava.loading import LlavaAdapter
from mir_plugin.model_adapters.moca.training import apply_moca, moca_parameters
from mir_plugin.samples.sample_set import Sample

from golden_data import require_golden

pytestmark = pytest.mark.slow

SAMPLES = [
    Sample("red", Image.new("RGB", (40, 30), (200, 30, 9)), "A red card."),
    Sample("blue", Image.new("RGB", (30, 40), (20, 30, 229)), "Blue, they say, all of it."),
]


def names_in(checkpoint: Path) -> set[str]:
    """Keys of all safetensors files, layer numbers left out."""
    names: set[str] = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            names |= {re.sub(r"layers\.\d+", "layers.N", name) for name in stored.keys()}  # noqa: SIM118
    return names


@pytest.mark.parametrize("with_moca", [True, False])
def test_an_exported_model_gives_its_hidden_states(tmp_path: Path, with_moca: bool) -> None:
    tiny = TINY_MODELS["llava"]()
    tiny.model.resize_token_embeddings(len(tiny.processor.tokenizer))  # as trained models have it
    if with_moca:
        apply_moca(tiny.model)
        with torch.no_grad():
            for parameter in moca_parameters(tiny.model):
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    export_llava(tiny.model, tiny.processor, str(tmp_path))
    assert open_checkpoint(tmp_path).spec.name == "llava-1.5"
    original = load_adapter(tmp_path, LoadOptions(device="cpu"))
    assert isinstance(original, LlavaAdapter)
    assert original.facts["moca"] is with_moca

    batch = original.encode(SAMPLES)
    prompts = batch.inputs["prompts"]
    ids = prompts.token_ids.masked_fill(prompts.vision_mask, tiny.model.config.image_token_id)
    with torch.no_grad():
        theirs = tiny.model.model(
            input_ids=ids, attention_mask=prompts.attention_mask, pixel_values=batch.inputs["pixel_values"]
        ).last_hidden_state
    ours = original.forward(batch)
    assert torch.allclose(ours[prompts.attention_mask], theirs[prompts.attention_mask], atol=1e-5)


def test_names_and_settings_are_those_of_the_released_code(tmp_path: Path) -> None:
    recorded = require_golden("llava/llava_moca") / "model"
    tiny = TINY_MODELS["llava"]()
    apply_moca(tiny.model)
    export_llava(tiny.model, tiny.processor, tmp_path)
    assert names_in(tmp_path) == names_in(recorded)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, recorded))
    # What only a training run knows, and what the later code no longer has.
    not_ours = {name for name in theirs if name.startswith(("tune_", "vocab_weight", "vocab_loss"))}
    assert theirs.keys() - ours.keys() - not_ours <= {
        "_name_or_path", "freeze_mm_mlp_adapter", "mm_projector_lr", "vision_tower_lr", "transformers_version",
    }  # fmt: skip


def test_what_has_no_place_in_the_layout_is_refused(tmp_path: Path) -> None:
    tiny = TINY_MODELS["llava"]()
    tuned = get_peft_model(tiny.model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    with pytest.raises(MirError, match=r"q_proj.* has no place in an original LLaVA checkpoint.*Merge LoRA first"):
        export_llava(tuned, tiny.processor, tmp_path)
    other = TINY_MODELS["idefics3"]()
    with pytest.raises(MirError, match=r"a idefics3 model .* .*LLaVA-1\.5"):
        export_llava(other.model, other.processor, tmp_path)
