"""Mini-Gemini on a Gemma, as MGM-2B is: towers, mining and projector of the recorded case in front of another base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from adapters.mini_gemini_cases import (
    assert_equal_to_rounding,
    case,
    first_sample,
    hidden_states,
    load_mini_gemini,
)
from adapters.original_layouts import randomised
from torch.nn.functional import embedding

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, open_checkpoint

from golden_data import require_golden

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip


def gemma() -> Any:
    return randomised(tf.GemmaForCausalLM(tf.GemmaConfig(**SIZES, tie_word_embeddings=True)))


def projector_on(folder: Path, base: Any, **config: Any) -> Path:
    """A projector-only checkpoint as MGM's pre-training leaves it, its base beside it."""
    recorded = require_golden("mini_gemini/mgm_projector")
    checkpoint, base_llm = folder / "model", folder / "base_llm"
    base.save_pretrained(base_llm)
    for path in (recorded / "base_llm").glob("*token*"):
        shutil.copyfile(path, base_llm / path.name)
    shutil.copytree(recorded / "model", checkpoint, copy_function=shutil.copyfile)
    stated = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in ("rms_norm_eps", "attention_bias", "pretraining_tp", "rope_scaling"):
        stated.pop(name, None)
    towers = {name: str(recorded / stated[name]) for name in ("mm_vision_tower", "mm_vision_tower_aux")}
    stated |= {**SIZES, **towers, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "_name_or_path": str(base_llm)}
    (checkpoint / "config.json").write_text(json.dumps(stated | config), encoding="utf-8")
    return checkpoint


@torch.no_grad()
def test_every_embedding_is_multiplied_as_when_it_was_trained(tmp_path: Path) -> None:
    base = gemma()
    adapter = load_mini_gemini(projector_on(tmp_path, base, model_type="mgm_gemma"))
    batch = adapter.encode(case("mgm_projector").samples()[:1])
    recorded_batch, recorded = first_sample("mgm_projector")
    assert torch.equal(batch.vision_mask, recorded_batch.vision_mask)

    # GemmaModel of transformers 4.38, which MGM-2B was trained with, multiplies whatever it is given by sqrt(d).
    inputs = embedding(batch.inputs["prompts"].token_ids, base.model.embed_tokens.weight)
    inputs[batch.vision_mask] = recorded[0][recorded_batch.vision_mask]
    if hasattr(base.model.embed_tokens, "embed_scale"):  # then transformers leaves what it is given alone
        inputs = inputs * SIZES["hidden_size"] ** 0.5
    expected = base.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
    for ours, its in zip(hidden_states(adapter, batch)[1:], expected[1:], strict=True):
        assert_equal_to_rounding(ours, its)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("mgm_gemma", r"describes a llama language model.*trained on a gemma.*--base-llm"), ("mgm_mixtral", "experts")],
)
def test_a_base_of_another_kind_is_refused_before_anything_is_loaded(
    tmp_path: Path, model_type: str, words: str
) -> None:
    checkpoint = projector_on(tmp_path, gemma(), model_type=model_type)
    base = require_golden("mini_gemini/mgm_projector") / "base_llm"
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    same_sizes = {name: config[name] for name in config.keys() & {*SIZES, "rms_norm_eps"} - {"head_dim"}}
    stated = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    stated.pop("head_dim")
    (checkpoint / "config.json").write_text(json.dumps(stated | same_sizes), encoding="utf-8")
    with pytest.raises(MirError, match=words):
        open_checkpoint(checkpoint, LoadOptions(base_llm=base)).inspect()
