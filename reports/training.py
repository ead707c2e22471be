"""Training runs on a board: their checkpoints by step, and what is plotted along them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from mir_plugin.reports.benchmarks import TRAINING_LOSS
from mir_plugin.reports.board import Board, BoardRow
from mir_plugin.reports.joint import score_of
from mir_plugin.reports.series import PALETTE, main_column, scopes, score_columns

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
    """Runs of the largest cohort with at least two steps; the checkpoints of one group in one folder are one run."""
    found: dict[tuple[str, str], list[BoardRow]] = {}
    for row in scopes(board)[0].rows if board.cohorts else ():
        if row.step is not None:
            found.setdefault((row.group, str(PurePosixPath(row.identity).parent)), []).append(row)
    runs = [
        TrainingRun(group or PurePosixPath(folder).name, tuple(sorted(rows, key=lambda row: row.step or 0)))
        for (group, folder), rows in found.items()
        if len({row.step for row in rows}) > 1
    ]
    return tuple(sorted(runs, key=lambda run: run.label)[: len(PALETTE)])


def training_quantities(board: Board, runs: tuple[TrainingRun, ...]) -> tuple[tuple[str, str], ...]:
    """(key, axis label) of MIR, the main score and the training loss, as far as the runs have them."""
    quantities = [(MIR, "MIR")]
    key = main_column(board)
    if key is not None and key != TRAINING_LOSS:
        quantities.append((key, dict(score_columns(board))[key]))
    quantities.append((TRAINING_LOSS, "Training loss"))
    return tuple((key, label) for key, label in quantities if any(run.values(key)[0] for run in runs))
