"""What one checkpoint takes over from the one before it, and that no number changes by it."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.llava.vision_tower import ClipTower
from mir_plugin.model_adapters.weights.shared_parts import FeatureStore, Seen, SharedParts
from mir_plugin.model_adapters.weights.stored import StoredTensor
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet

from golden_data import require_golden

pytestmark = pytest.mark.slow

TEXTS = ("A short text.", "Another one, with a few more words than the first.")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the projector-only case, to be changed."""
    return Path(shutil.copytree(require_golden("llava/llava_projector"), tmp_path / "case"))


@pytest.fixture
def tower_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of every pass through a vision tower from here on."""
    calls: list[int] = []
    forward = ClipTower.forward

    def counted(self: ClipTower, pixel_values: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixel_values))
        return forward(self, pixel_values)

    monkeypatch.setattr(ClipTower, "forward", counted)
    return calls


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that tensors are read from, from here on."""
    names: list[str] = []
    read = StoredTensor.read

    def noted(self: StoredTensor) -> torch.Tensor:
        names.append(f"{self.path.parent.name}/{self.path.name}")
        return read(self)

    monkeypatch.setattr(StoredTensor, "read", noted)
    return names


@functools.cache  # features are kept for samples, not for equal ones
def samples_of(case: Path, n_samples: int) -> SampleSet:
    return SampleSet(
        tuple(Sample(str(k), case / "samples" / f"0{k}.png", text) for k, text in enumerate(TEXTS[:n_samples]))
    )


def measured(
    checkpoint: Path, case: Path, shared: SharedParts | None = None, n_samples: int = 1, **options: Any
) -> MirResult:
    chosen = {"base_llm": case / "base_llm", "vision_tower": case / "vision_tower", "device": "cpu"} | options
    adapter = load_adapter(checkpoint, LoadOptions(**chosen), shared=shared)
    return measure(
        adapter, samples_of(case, n_samples), checkpoint=str(checkpoint), batch_size=2, with_uncertainty=False
    )


def numbers(result: MirResult) -> tuple[Any, ...]:
    return result.mir, result.layers, result.fingerprints, result.facts


def test_checkpoints_that_share_get_the_numbers_of_single_runs_to_the_last_bit(
    case: Path, tower_calls: list[int], reads: list[str]
) -> None:
    checkpoints = [case / "model" / "checkpoint-20", case / "model"]
    single = [measured(checkpoint, case, n_samples=2) for checkpoint in checkpoints]
    assert single[0].mir != single[1].mir
    shared = SharedParts()
    first = measured(checkpoints[0], case, shared, n_samples=2)
    tower_calls.clear()
    reads.clear()
    second = measured(checkpoints[1], case, shared, n_samples=2)
    assert numbers(first) == numbers(single[0])
    assert numbers(second) == numbers(single[1])
    assert set(reads) == {"model/mm_projector.bin"}
    assert tower_calls == []


def test_a_tower_or_base_llm_that_changed_on_disk_is_read_again(case: Path) -> None:
    shared = SharedParts()
    before = measured(case / "model", case, shared)
    for part, key in (
        ("vision_tower", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("base_llm", "model.layers.0.mlp.up_proj.weight"),
    ):
        path = case / part / "model.safetensors"
        weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
        weights[key] *= 1.5
        path.unlink()  # as writers do that replace a file: tensors in use stay mapped to the old one
        save_file(weights, path, metadata={"format": "pt"})
        after = measured(case / "model", case, shared)
        assert after.mir != before.mir
        assert numbers(after) == numbers(measured(case / "model", case))
        before = after


def test_a_copy_of_the_same_tower_is_recognised_by_its_content(case: Path, tower_calls: list[int]) -> None:
    copy = shutil.copytree(case / "vision_tower", case / "tower_copy")
    shared = SharedParts()
    first = measured(case / "model", case, shared)
    assert tower_calls
    tower_calls.clear()
    assert measured(case / "model", case, shared, vision_tower=copy).layers == first.layers
    assert tower_calls == []


@pytest.mark.parametrize(
    ("before", "after"),
    [('"mm_vision_select_layer": -2', '"mm_vision_select_layer": -3'), ('"square"', '"pad"')],
    ids=["another layer of the tower", "other preprocessing"],
)
def test_features_count_only_for_the_same_use_of_the_tower(case: Path, before: str, after: str) -> None:
    shared = SharedParts()
    first = measured(case / "model", case, shared)
    config = case / "model" / "config.json"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    second = measured(case / "model", case, shared)
    assert second.mir != first.mir
    assert numbers(second) == numbers(measured(case / "model", case))


def test_another_dtype_shares_nothing(case: Path, reads: list[str]) -> None:
    shared = SharedParts()
    measured(case / "model", case, shared)
    first = sorted(reads)
    reads.clear()
    lower = measured(case / "model", case, shared, dtype="bfloat16")
    assert sorted(reads) == first
    assert numbers(lower) == numbers(measured(case / "model", case, dtype="bfloat16"))


def test_a_checkpoint_that_fails_to_load_does_not_spoil_the_next(case: Path) -> None:
    shared = SharedParts()
    measured(case / "model", case, shared)
    broken = shutil.copytree(case / "model" / "checkpoint-20", case / "model" / "checkpoint-30")
    state = torch.load(broken / "mm_projector.bin", weights_only=True)
    torch.save({name: tensor * float("nan") for name, tensor in state.items()}, broken / "mm_projector.bin")
    with pytest.raises(MirError, match="NaN"):
        measured(broken, case, shared)
    again = measured(case / "model" / "checkpoint-20", case, shared)
    assert numbers(again) == numbers(measured(case / "model" / "checkpoint-20", case))


def test_a_merged_lora_is_kept_only_while_its_factors_are_the_same(tmp_path: Path, reads: list[str]) -> None:
    case = Path(shutil.copytree(require_golden("llava/llava_lora"), tmp_path / "lora"))
    shared = SharedParts()
    first = measured(case / "model", case, shared)
    reads.clear()
    assert measured(case / "model", case, shared).layers == first.layers
    assert reads == []
    path = case / "model" / "adapter_model.safetensors"
    weights = {name: tensor * 2 for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(weights, path)
    after = measured(case / "model", case, shared)
    assert after.mir != first.mir
    assert numbers(after) == numbers(measured(case / "model", case))


def test_features_are_kept_for_the_very_batch_and_only_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compute() -> Seen:
        calls.append(1)
        return Seen(torch.ones(1, 4), ())

    monkeypatch.setattr("mir_plugin.model_adapters.weights.shared_parts.MAX_FEATURE_BYTES", 40)
    store, samples = FeatureStore(), [Sample(str(k), bytes([k]), "text") for k in range(4)]
    for batch in (samples[:1], samples[:2], samples[:1], samples[:2]):
        store.of(batch, compute)
    assert len(calls) == 2
    store.of(samples[2:], compute)
    store.of(samples[2:], compute)
    assert len(calls) == 4  # 48 bytes would be too many
