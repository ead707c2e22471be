"""Training runs on a board: their checkpoints by step, and what is plotted along them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.measurement.checkpoint_names import run_of, step_in_name
from mir_plugin.reports.board.board import Board, BoardRow
from mir_plugin.reports.board.joint import score_of
from mir_plugin.reports.read.headline_table import TRAINING_LOSS
from mir_plugin.reports.read.identity import short_names
from mir_plugin.reports.view.series import (
    PALETTE,
    main_column,
    main_scope,
    score_columns,
)

MIR = "mir"


@dataclass(frozen=True)
class TrainingRun:
    """Checkpoints of one training run, by step."""

    label: str
    rows: tuple[BoardRow, ...]

    def values(self, quantity: str) -> tuple[list[int], list[float]]:
        """Steps and values of the checkpoints that have a value of a quantity's key."""
        pairs = [(row.step or 0, number) for row in self.rows if (number := value_of(row, quantity)) is not None]
        return [step for step, _ in pairs], [number for _, number in pairs]


def value_of(row: BoardRow, quantity: str) -> float | None:
    """The row's MIR, or its score of that key."""
    return row.mir if quantity == MIR else score_of(row, quantity)


def training_runs(board: Board) -> tuple[TrainingRun, ...]:
    """Runs with at least two steps, of the cohort that has most checkpoints with steps.

    A run is divided where each of its groups has several checkpoints: a name or group of one changes no curve.

    Checkpoints named after a step belong to the run that the name or its folder says; others of known step to the run
    of their folder.
    """
    by_run: dict[str, list[BoardRow]] = {}
    scope = main_scope(board, lambda row: row.step is not None)
    for row in scope.rows if scope else ():
        if row.step is not None:
            by_run.setdefault(_run(row.identity), []).append(row)
    found = {(group, run): rows for run, members in by_run.items() for group, rows in _by_group(members).items()}
    found = {key: rows for key, rows in found.items() if len({row.step for row in rows}) > 1}
    labels = _labels(found)
    runs = [TrainingRun(labels[key], tuple(sorted(rows, key=lambda row: row.step or 0))) for key, rows in found.items()]
    return tuple(sorted(runs, key=lambda run: run.label)[: len(PALETTE)])


def _by_group(rows: Sequence[BoardRow]) -> dict[str, list[BoardRow]]:
    """The rows of a run by group; as one if a group has only one of them, under the group if there is only one."""
    groups: dict[str, list[BoardRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    if min(map(len, groups.values())) > 1 or len(groups) == 1:
        return groups
    return {"": list(rows)}


def _run(identity: str) -> str:
    path = Path(identity)
    return str(path.parent) if step_in_name(path.name) is None else run_of(path)


def _labels(runs: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What each run (group, folder) is called: its group where that is its alone, else its folder, else both.

    >>> list(_labels([("ours", "runs/a"), ("mlp", "runs/seed-0"), ("mlp", "runs/seed-1"), ("", ".")]).values())
    ['ours', 'seed-0', 'seed-1', 'training']
    """
    groups, folders = Counter(group for group, _ in runs), Counter(folder for _, folder in runs)
    short = short_names(folders) | {".": "training"}

    def label(group: str, folder: str) -> str:
        if group and groups[group] == 1:
            return group
        return short[folder] if folders[folder] == 1 else f"{group}, {short[folder]}"

    return {run: label(*run) for run in runs}


def dependence(board: Board) -> tuple[str, ...]:
    """What to say of correlations over checkpoints of one training run; nothing where there are none."""
    if not training_runs(board):
        return ()
    return ("Checkpoints of one training run are not independent; p-values and intervals treat them as if they were.",)


def training_quantities(board: Board, runs: tuple[TrainingRun, ...]) -> tuple[tuple[str, str], ...]:
    """(key, axis label) of MIR, the main score and the training loss, as far as the runs have them."""
    quantities = [(MIR, "MIR")]
    key = main_column(board)
    if key is not None and key != TRAINING_LOSS:
        quantities.append((key, dict(score_columns(board))[key]))
    quantities.append((TRAINING_LOSS, "Training loss"))
    return tuple((key, label) for key, label in quantities if any(run.values(key)[0] for run in runs))
