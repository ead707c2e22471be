"""The whole replication: pre-trainings, then every checkpoint, then what is made of the outcomes. Resumes by itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.replication.outcomes import (
    CheckpointPlan,
    Outcome,
    as_csv,
    planned,
)
from examples.replication.processes import results_of, workers
from examples.replication.recipe import RECIPE, Recipe
from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically

RECIPE_NAME, RUN_NAME = "recipe.json", "run.json"


@dataclass(frozen=True)
class Replication:
    """All outcomes, and what the run cost.

    Attributes:
        minutes: on the clock, over all calls that a resumed run took.
        n_processes: of the last call.
    """

    recipe: Recipe
    outcomes: tuple[Outcome, ...]
    minutes: float
    n_processes: int


def replicate(
    out: Path,
    *,
    n_seeds: int = 3,
    n_processes: int = 2,
    recipe: Recipe = RECIPE,
    tell: Callable[[str], None] = print,
) -> Replication:
    """Pre-train, measure, fine-tune and score everything that is not finished yet.

    A killed call loses at most the pre-training or the checkpoint that each process was at.

    Args:
        tell: gets a line for each finished checkpoint.
    Raises:
        MirError: if the folder holds a replication with another recipe, or its name cannot be given to lmms-eval.
    """
    started = time.perf_counter()
    _check_folder(out, recipe)
    plans = list(planned(out, recipe, range(n_seeds)))
    earlier = _minutes_so_far(out)
    pending = [plan for plan in plans if not plan.outcome_path.is_file()]
    if len(pending) < len(plans):
        tell(f"{len(plans) - len(pending)} of {len(plans)} checkpoints were finished before")
    if pending:
        with workers(n_processes, out / "logs") as executor:
            for done in _finished(executor, recipe, pending):
                minutes = earlier + (time.perf_counter() - started) / 60
                write_atomically(out / RUN_NAME, json.dumps({"minutes": minutes}) + "\n")
                tell(done)
    outcomes = tuple(Outcome.load(plan.outcome_path) for plan in plans)
    write_atomically(out / "results.csv", as_csv(outcomes))
    return Replication(recipe, outcomes, _minutes_so_far(out), n_processes)


def _finished(executor: Executor, recipe: Recipe, pending: Sequence[CheckpointPlan]) -> Iterator[str]:
    """Do all work; yields a line for each checkpoint when it is finished."""
    runs = [list(group) for _, group in groupby(pending, key=lambda plan: plan.run_dir)]
    trainings: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (_prepare, (pending[0].out,)),
        *((_pretrain, (recipe, run)) for run in runs),
    ]
    for _ in tqdm(results_of(executor, trainings), "pre-training", len(trainings), unit="run", disable=None):
        pass
    studies = [(_study_checkpoint, (recipe, plan)) for plan in pending]
    bar = tqdm(results_of(executor, studies), "checkpoints", len(studies), unit="checkpoint", disable=None)
    for number, one in enumerate(bar, start=1):
        yield (
            f"{number}/{len(pending)} seed {one.seed}, {one.run}, step {one.step}: "
            f"MIR {one.indicators['mir']:.3f}, score {one.indicators['score_before']:.1f} → {one.score:.1f}"
        )


def _check_folder(out: Path, recipe: Recipe) -> None:
    """Write the recipe down, or find the same one."""
    if set(str(out.resolve())) & {",", "="}:
        raise MirError(f"--out is {out}; lmms-eval takes no path with a comma or an equals sign. Choose another one.")
    path = out / RECIPE_NAME
    if not path.is_file():
        document = {"fingerprint": recipe.fingerprint, **dataclasses.asdict(recipe)}
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise MirError(f"{path} is no recipe ({error!r}). Choose an empty folder with --out.") from error
    if found != recipe.fingerprint:
        raise MirError(
            f"{out} holds a replication of another recipe ({found}; this one is {recipe.fingerprint}). "
            "Choose another folder with --out."
        )


def _minutes_so_far(out: Path) -> float:
    path = out / RUN_NAME
    return float(json.loads(path.read_text(encoding="utf-8"))["minutes"]) if path.is_file() else 0.0


# What workers are told to do. The modules with torch are imported there; this process only waits and adds up.


def _prepare(out: Path) -> None:
    from examples.replication.work import prepare

    prepare(out)


def _pretrain(recipe: Recipe, plans: Sequence[CheckpointPlan]) -> None:
    from examples.replication.work import pretrain

    pretrain(recipe, plans)


def _study_checkpoint(recipe: Recipe, plan: CheckpointPlan) -> Outcome:
    from examples.replication.work import study_checkpoint

    return study_checkpoint(recipe, plan)
