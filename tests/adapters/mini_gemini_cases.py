"""The recorded Mini-Gemini cases, loaded once, and altered copies of one of them.

Tolerance of hidden states: 5e-6 of the largest value. The recorded ones come from another transformers version in
float32, on values up to 33; 8e-7 is reached, and the smallest mistake recorded in ``expected.json`` (the second tower's
weights from the wrong place) moves the projector's output by 2e-3.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mir_plugin.engine.features import recorded_outputs
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch

from golden_data import expected, require_golden

HIDDEN_STATES = 5e-6


@dataclass(frozen=True)
class Case:
    """One recorded checkpoint: what was recorded, and the same checkpoint loaded by us."""

    folder: Path
    recorded: dict[str, Any]
    tensors: dict[str, Tensor]
    adapter: LlavaAdapter

    def samples(self) -> list[Sample]:
        return [
            Sample(sample["id"], self.folder / sample["image"], sample["text"]) for sample in self.recorded["samples"]
        ]


@functools.cache
def case(name: str) -> Case:
    folder = require_golden(f"mini_gemini/{name}")
    recorded = expected(folder)
    base_llm = recorded["model_base"]
    adapter = load_mini_gemini(folder / "model", base_llm=folder / base_llm if base_llm else None)
    return Case(folder, recorded, load_file(folder / "expected_hidden.safetensors"), adapter)


@functools.cache
def all_samples(name: str) -> Batch:
    return case(name).adapter.encode(case(name).samples())


@functools.cache
@torch.no_grad()
def first_sample(name: str) -> tuple[Batch, list[Tensor]]:
    """The first sample as encoded, and its hidden states 0..L."""
    batch = case(name).adapter.encode(case(name).samples()[:1])
    return batch, hidden_states(case(name).adapter, batch)


@torch.no_grad()
def hidden_states(adapter: LlavaAdapter, batch: Batch) -> list[Tensor]:
    states = [adapter.model.embed(batch.inputs["prompts"], batch.inputs["pixel_values"])]
    with recorded_outputs(adapter, states.append):
        adapter.forward(batch)
    return states


def assert_equal_to_rounding(actual: Tensor, recorded: Tensor, tolerance: float = HIDDEN_STATES) -> None:
    assert actual.shape == recorded.shape
    assert (actual - recorded).abs().max() <= tolerance * recorded.abs().max()


def altered(folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda tensors: None, **config: Any) -> Path:
    """A copy of mgm_full in ``folder`` with other tensors (in one file) and other entries in its config."""
    source = require_golden("mini_gemini/mgm_full")
    checkpoint = folder / "checkpoint"
    shutil.copytree(source / "model", checkpoint, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    entries = json.loads((source / "model" / "config.json").read_text(encoding="utf-8"))
    for name in ("mm_vision_tower", "mm_vision_tower_aux"):
        entries[name] = str(source / entries[name])
    (checkpoint / "config.json").write_text(json.dumps(entries | config), encoding="utf-8")
    tensors = {
        name: value for shard in (source / "model").glob("*.safetensors") for name, value in load_file(shard).items()
    }
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def load_mini_gemini(checkpoint: Path, **options: Any) -> LlavaAdapter:
    adapter = load_adapter(checkpoint, LoadOptions(device="cpu", **({"dtype": "float32"} | options)))
    assert isinstance(adapter, LlavaAdapter)
    return adapter
