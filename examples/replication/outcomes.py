"""Which checkpoints a replication has, where they lie, and what came out for each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.replication.recipe import PreTraining, Recipe, Study
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.outside_text import csv_table

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class CheckpointPlan:
    """One checkpoint of one pre-training with one seed, below the replication's folder."""

    out: Path
    pre_training: PreTraining
    seed: int
    step: int

    @property
    def run_dir(self) -> Path:
        """The pre-training's folder, as a Trainer's output folder."""
        return self.out / CHECKPOINTS / f"{self.pre_training.name}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """The projector-only checkpoint."""
        return self.run_dir / f"checkpoint-{self.step}"

    @property
    def tuned_folder(self) -> Path:
        """The full checkpoint after fine-tuning."""
        return self.run_dir / f"tuned-{self.step}"

    @property
    def results_dir(self) -> Path:
        """Everything measured."""
        return self.out / "results" / f"{self.pre_training.name}-seed-{self.seed}-step-{self.step}"

    @property
    def outcome_path(self) -> Path:
        """Written last: where it is, the checkpoint is finished."""
        return self.results_dir / "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """What came out for one checkpoint.

    Attributes:
        run: name of the pre-training.
        indicators: by name, known before fine-tuning; those that could not be computed are in ``not_computed``.
        score: per cent of right answers after fine-tuning.
        seconds: by part of the work.
    """

    seed: int
    run: str
    step: int
    n_digits: int
    rate: float
    connector: str
    indicators: Mapping[str, float]
    score: float
    not_computed: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the outcome as JSON; a reader sees all of it or nothing."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what ``save`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def planned(out: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[CheckpointPlan]:
    """All checkpoints, seed by seed."""
    for seed in seeds:
        for pre_training in recipe.pre_trainings:
            for step in pre_training.saved_steps:
                yield CheckpointPlan(out.resolve(), pre_training, seed, step)


def of_study(study: Study, outcomes: Sequence[Outcome], recipe: Recipe) -> list[Outcome]:
    """The outcomes that belong to a study: those of the baseline, and of the runs that differ from it in this thing.

    The study of training steps has the baseline's checkpoints alone; all others compare last checkpoints.
    """
    baseline = recipe.pre_trainings[0]
    if study.varied == "step":
        return [one for one in outcomes if one.run == baseline.name]
    same = getattr(baseline, study.varied)
    members = {one.name for one in recipe.pre_trainings if getattr(one, study.varied) != same}
    last = max(baseline.saved_steps)
    return [one for one in outcomes if one.step == last and one.run in {baseline.name, *members}]


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """One row per checkpoint, one column per number."""
    names = list(dict.fromkeys(name for one in outcomes for name in one.indicators))
    facts = ("seed", "run", "step", "n_digits", "rate", "connector")
    rows = [[*(getattr(one, fact) for fact in facts), *map(one.indicators.get, names), one.score] for one in outcomes]
    return csv_table([[*facts, *names, "score"], *rows])
