"""Prompts, ids, pixels and hidden states of LLaVA and ShareGPT4V checkpoints against those of the original code.

Prompts, token ids and pixels are equal exactly. Hidden states are compared position by position, ‖ours − theirs‖ ÷
‖theirs‖, with a tolerance of 2e-5: both sides are float32 computations by different transformers versions (5e-6 is the
worst that was reached, in llava_full). The wrong vision tower, a skipped projector or MoCa switched off move them by
more than 1e-2.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mir_plugin.engine.features import recorded_outputs
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.llava.loading import LlavaAdapter
from mir_plugin.model_adapters.prompts.conversation import IMAGE_PLACEHOLDER, VICUNA_V1
from mir_plugin.model_adapters.prompts.sequences import expand
from mir_plugin.samples.sample_set import Sample

from golden_data import expected, require_golden

pytestmark = pytest.mark.slow

HIDDEN_STATES = 2e-5
TOWER_NAMED = "named tower"


@dataclass(frozen=True)
class Recorded:
    """One recorded run, and the same checkpoint loaded by us without naming a base LLM: its config does."""

    samples: list[dict[str, Any]]
    tensors: dict[str, Tensor]
    folder: Path
    adapter: LlavaAdapter

    def sample(self, index: int) -> Sample:
        recorded = self.samples[index]
        text = (self.folder / (recorded.get("text_file") or recorded["text"])).read_text(encoding="utf-8")
        return Sample(str(index), self.folder / recorded["image"], text.partition("@highlight")[0].strip())

    def hidden_states(self, *indices: int) -> tuple[list[Tensor], Any]:
        """Embeddings and layers 1..L of these samples as one batch, (samples, tokens, d) each, and the batch."""
        batch = self.adapter.encode([self.sample(index) for index in indices])
        states: list[Tensor] = []
        hook = self.adapter.decoder.layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
        try:
            with recorded_outputs(self.adapter, states.append):
                self.adapter.forward(batch)
        finally:
            hook.remove()
        return states, batch


CASES = {
    **{f"llava_{name}": f"llava/llava_{name}" for name in ("full", "projector", "linear", "mlp4x", "lora", "moca")},
    **{f"llava_{name}": f"llava/llava_{name}" for name in ("moca_projector", "unlock", "qformer")},
    "llava_projector, checkpoint-20": "llava/llava_projector",
    "share4v_published": "sharegpt4v/share4v_published",
    "share4v_projector": "sharegpt4v/share4v_projector",
    "share4v_full": "sharegpt4v/share4v_full",
    "share4v_pretrain": "sharegpt4v/share4v_pretrain",
    f"share4v_full, {TOWER_NAMED}": "sharegpt4v/share4v_full",
    f"share4v_pretrain, {TOWER_NAMED}": "sharegpt4v/share4v_pretrain",
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def recorded(name: str) -> Recorded:
    folder = require_golden(CASES[name])
    checkpoint, suffix, tower = folder / "model", "", None
    if name.endswith("checkpoint-20"):
        checkpoint, suffix = checkpoint / "checkpoint-20", "_checkpoint-20"
    elif name.endswith(TOWER_NAMED):
        tower = folder / "vision_tower"
    elif (folder / "expected_tuned_tower.json").is_file():
        suffix = "_tuned_tower"
    adapter = load_adapter(checkpoint, LoadOptions(dtype="float32", device="cpu", vision_tower=tower))
    assert isinstance(adapter, LlavaAdapter)
    return Recorded(
        expected(folder)["samples"], load_file(folder / f"expected_hidden{suffix}.safetensors"), folder, adapter
    )


@every_case
def test_prompts_and_token_ids_equal_the_recorded_ones_exactly(name: str) -> None:
    run = recorded(name)
    for index, sample in enumerate(run.samples):
        assert VICUNA_V1.answered("<image>\n", run.sample(index).text) == sample["prompt"]
        ours = run.adapter.encode([run.sample(index)])
        whole = expand(sample["input_ids"], sample.get("n_image_tokens") or sample["num_image_tokens"])
        n_tokens = sample.get("sequence_length") or sample["num_tokens"]
        assert ours.inputs["prompts"].token_ids[0].tolist() == whole.token_ids[:n_tokens].tolist()
        assert ours.vision_mask[0].nonzero()[0].item() == sample["input_ids"].index(IMAGE_PLACEHOLDER)
        n_text = sample.get("n_text_tokens") or sample["num_text_tokens"]
        assert (int(ours.vision_mask.sum()), int(ours.text_mask.sum())) == (int(whole.vision_mask.sum()), n_text)


@every_case
def test_pixels_equal_the_recorded_ones_exactly(name: str) -> None:
    run = recorded(name)
    batch = run.adapter.encode([run.sample(index) for index in range(len(run.samples))])
    for index, (sample, pixels) in enumerate(zip(run.samples, batch.inputs["pixel_values"], strict=True)):
        if probe := sample.get("pixel_values"):
            places = probe["probe_rows_cols"]
            assert torch.equal(pixels[:, places][:, :, places], torch.tensor(probe["probe"]))
        elif f"sample{index}.pixel_values_subsample" in run.tensors:
            assert torch.equal(pixels[:, 12::24, 12::24], run.tensors[f"sample{index}.pixel_values_subsample"])


@every_case
def test_hidden_states_equal_the_recorded_ones(name: str) -> None:
    run = recorded(name)
    for index in (0, 4):  # one text, one story; the MIR values are compared over all six
        states, batch = run.hidden_states(index)
        for layer, state in enumerate(states):
            for modality, mask in (("vision", batch.vision_mask), ("text", batch.text_mask)):
                rows = state[mask]
                theirs = run.tensors[f"sample{index}.{modality}_mean"][layer]
                assert relative(rows.mean(0), theirs) < HIDDEN_STATES
                norm = run.tensors[f"sample{index}.{modality}_mean_norm"][layer]
                assert rows.norm(dim=-1).mean().item() == pytest.approx(norm.item(), rel=HIDDEN_STATES)
            key = "sample0.hidden_states_every32tokens"
            if index == 0 and key in run.tensors:
                assert relative(state[0, ::32], run.tensors[key][layer]) < HIDDEN_STATES


@pytest.mark.parametrize("name", ["llava_moca", "llava_qformer"])
def test_a_batch_of_three_gives_what_single_samples_give(name: str) -> None:
    run = recorded(name)
    together, batch = run.hidden_states(0, 1, 2)
    for row in range(3):
        alone, _ = run.hidden_states(row)
        n_tokens = alone[0].shape[1]
        assert not batch.vision_mask[row, n_tokens:].any()
        assert not batch.text_mask[row, n_tokens:].any()
        for ours, single in zip(together, alone, strict=True):
            assert relative(ours[row, :n_tokens], single[0]) < HIDDEN_STATES


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest ‖ours − theirs‖ ÷ ‖theirs‖ over rows of width d."""
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()
