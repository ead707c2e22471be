"""What one process does: pre-train a projector; measure, fine-tune and score a checkpoint of it."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from examples.replication.captions import CAPTIONS, captions_of
from examples.replication.micro_llava import (
    BASE_LLM,
    VISION_TOWER,
    Parts,
    load_llava_projector,
    load_parts,
    save_llava_full,
    save_llava_parts,
    save_llava_projector,
    vision_features,
)
from examples.replication.outcomes import CHECKPOINTS, CheckpointPlan, Outcome
from examples.replication.recipe import Recipe
from examples.replication.scoring import digits_score
from examples.replication.training import (
    Pictures,
    Stage,
    finetune,
    make_repeatable,
    train_projector,
)
from mir_plugin.indicators.file import INDICATORS_NAME, save_indicators
from mir_plugin.indicators.in_context import EMBEDDED_DIGITS
from mir_plugin.indicators.indicators import checkpoint_indicators
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.results import RESULT_NAME
from mir_plugin.samples.embedded import digit_questions, embedded_samples, micro_checkpoints
from mir_plugin.samples.sample_set import Sample, SampleSet

BATCH = 16  # samples per forward pass


class Workshop(NamedTuple):
    """What all work shares: the frozen parts, and what the tower sees in the training digits."""

    parts: Parts
    pictures: Pictures


class SampleSets(NamedTuple):
    """Three sets of pairs, none of which was trained on.

    Attributes:
        captioned: held-out digits, each with a true caption: the only ones whose text says what the image shows.
        prose: the same digits with passages of prose, unrelated as in the paper's protocol.
        photographs: the embedded samples, photographs with prose: no picture that the tower knows.
    """

    captioned: SampleSet
    prose: SampleSet
    photographs: SampleSet


@functools.cache
def workshop() -> Workshop:
    """Loaded once in a process."""
    make_repeatable()
    parts = load_parts(micro_checkpoints()[0])
    digits = digit_questions("train")
    return Workshop(parts, Pictures.of(digits, vision_features(parts.tower, digits)))


@functools.cache
def sample_sets(n: int) -> SampleSets:
    """Made once in a process."""
    digits, photographs = digit_questions("test", n), embedded_samples(n)

    def digits_with(source: str, texts: Iterable[str]) -> SampleSet:
        pairs = zip(digits, texts, strict=True)
        return SampleSet(tuple(Sample(q.question_id, q.image, text) for q, text in pairs), {"source": source})

    captions = (captions_of(digit)[index % len(CAPTIONS)] for index, digit in enumerate(digits))
    return SampleSets(
        captioned=digits_with("held-out digits, true captions", captions),
        prose=digits_with("held-out digits, prose", (sample.text for sample in photographs.samples)),
        photographs=photographs,
    )


def prepare(out: Path) -> None:
    """Write the frozen parts, as the folders that every projector-only checkpoint names."""
    folder = out / CHECKPOINTS
    if all((folder / name / "model.safetensors").is_file() for name in (BASE_LLM, VISION_TOWER)):
        return
    with appearing_whole(folder / "parts") as temporary:
        save_llava_parts(temporary, workshop().parts)
    for name in (BASE_LLM, VISION_TOWER):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "parts" / name).rename(folder / name)
    (folder / "parts").rmdir()


def pretrain(recipe: Recipe, plans: Sequence[CheckpointPlan]) -> float:
    """Pre-train one projector and save what is missing of its checkpoints; returns the seconds it took.

    Args:
        plans: all checkpoints of one run.
    """
    started = time.perf_counter()
    missing = {plan.step: plan for plan in plans if not plan.folder.is_dir()}
    if not missing:
        return 0.0
    parts, pictures = workshop()
    run = plans[0].pre_training
    stage = Stage(recipe.n_steps, recipe.batch, run.rate, plans[0].seed)
    losses: list[float] = []
    for step, loss, projector in train_projector(parts, pictures.first(run.n_digits), stage, run.connector):
        losses += [loss] if step else []
        if step in missing:
            with appearing_whole(missing.pop(step).folder) as folder:
                save_llava_projector(folder, parts, projector, losses)
        if not missing:
            break
    return time.perf_counter() - started


def study_checkpoint(recipe: Recipe, plan: CheckpointPlan) -> Outcome:
    """Measure a checkpoint, fine-tune it, score it before and after; returns at once what an earlier run has saved."""
    if plan.outcome_path.is_file():
        return Outcome.load(plan.outcome_path)
    shutil.rmtree(plan.results_dir, ignore_errors=True)
    workshop()
    clock = _Clock()
    indicators, not_computed = measured(recipe, plan)
    clock.lap("indicators")
    indicators["score_before"] = digits_score(plan.folder, plan.results_dir / "before")
    clock.lap("score before")
    fine_tune(recipe, plan)
    clock.lap("fine-tuning")
    score = digits_score(plan.tuned_folder, plan.results_dir / "after")
    clock.lap("score after")
    run = plan.pre_training
    outcome = Outcome(
        seed=plan.seed,
        run=run.name,
        step=plan.step,
        n_digits=run.n_digits,
        rate=run.rate,
        connector=run.connector,
        indicators=indicators,
        score=score,
        not_computed=not_computed,
        seconds=clock.laps,
    )
    outcome.save(plan.outcome_path)
    return outcome


def measured(recipe: Recipe, plan: CheckpointPlan) -> tuple[dict[str, float], dict[str, str]]:
    """All indicators on captioned digits, MIR alone on the other two sets; and what could not be computed, and why."""
    adapter = load_adapter(plan.folder, LoadOptions(device="cpu", dtype="float32"))
    captioned, prose, photographs = sample_sets(recipe.n_samples)
    found = checkpoint_indicators(
        adapter, plan.folder, captioned, digit_questions("test", recipe.n_in_context), batch_size=BATCH
    )
    about = {"source": EMBEDDED_DIGITS, "n_questions": recipe.n_in_context, "seed": 0}
    save_indicators(plan.results_dir / INDICATORS_NAME, found, adapter, plan.folder, captioned, about)
    by_captions = measure(adapter, captioned, checkpoint=str(plan.folder), batch_size=BATCH)
    by_captions.save(plan.results_dir / RESULT_NAME)
    by_prose, by_photographs = (
        measure(adapter, pairs, checkpoint=str(plan.folder), batch_size=BATCH, with_uncertainty=False)
        for pairs in (prose, photographs)
    )
    more = {
        "mir_prose": by_prose.mir,
        "mir_photographs": by_photographs.mir,
        "norm_ratio": by_captions.layers[0].norm_ratio,
    }
    return {**found.values, **more}, dict(found.not_computed)


def fine_tune(recipe: Recipe, plan: CheckpointPlan) -> None:
    """The same second stage for every checkpoint of a seed, from the same language model."""
    parts, pictures = workshop()
    projector = load_llava_projector(plan.folder, plan.pre_training.connector, parts)
    stage = Stage(recipe.fine_tuning_steps, recipe.fine_tuning_batch, recipe.fine_tuning_rate, plan.seed)
    tuned, tuned_projector = finetune(parts, projector, pictures, stage)
    with appearing_whole(plan.tuned_folder) as folder:
        save_llava_full(folder, tuned, tuned_projector)


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which takes the folder's name, and place, when the block ends."""
    temporary = folder.with_name(f".{folder.name}.part")
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(folder)


class _Clock:
    """Seconds of one part of the work after another."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now
