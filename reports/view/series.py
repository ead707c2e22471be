"""What the page's charts and the figures show: which rows may share a plot, their points, and numbers over layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mir_plugin.reports.board.board import AVERAGE, Board, BoardRow
from mir_plugin.reports.board.fit import Line, fit_line
from mir_plugin.reports.board.joint import score_of
from mir_plugin.results import LayerDistance

# Okabe and Ito's colours in an order whose first members differ most; told apart by readers with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#555555")


@dataclass(frozen=True)
class Scope:
    """Rows whose MIR values may be plotted together: a cohort, or one group of it."""

    key: str
    label: str
    rows: tuple[BoardRow, ...]


@dataclass(frozen=True)
class Scatter:
    """MIR against one score, over the rows of a scope that have both."""

    rows: tuple[BoardRow, ...]
    mir: tuple[float, ...]
    score: tuple[float, ...]
    line: Line | None


def scopes(board: Board) -> tuple[Scope, ...]:
    """Every cohort, followed by its groups if there are several; the keys are those of ``Correlation.scope``."""
    found = []
    for cohort in board.cohorts:
        members = tuple(row for row in board.rows if row.cohort == cohort.name)
        prefix = f"Cohort {cohort.name}" if len(board.cohorts) > 1 else ""
        found.append(Scope(cohort.name, prefix or "All checkpoints", members))
        groups = sorted({row.group for row in members if row.group})
        if len(groups) > 1:
            found += [
                Scope(
                    f"{cohort.name} / {group}",
                    f"{prefix}: {group}" if prefix else group,
                    tuple(row for row in members if row.group == group),
                )
                for group in groups
            ]
    return tuple(found)


def scatter(scope: Scope, column: str) -> Scatter:
    """Points and fitted line of one scope and one score column: a benchmark key, or ``AVERAGE``."""
    points = [
        (row, row.mir, value)
        for row in scope.rows
        if row.mir is not None and (value := score_of(row, column)) is not None
    ]
    mir, score = tuple(m for _, m, _ in points), tuple(value for _, _, value in points)
    return Scatter(tuple(row for row, _, _ in points), mir, score, fit_line(mir, score))


def main_scope(board: Board, counts: Callable[[BoardRow], bool] | None = None) -> Scope | None:
    """The cohort with most rows that count, the larger one of several; None where no row does.

    Args:
        counts: whether a row counts; without it those that have MIR and a score.
    """
    counts = counts or (lambda row: row.mir is not None and bool(row.scores))
    cohorts = [scope for scope in scopes(board) if scope.key in {cohort.name for cohort in board.cohorts}]
    best = max(cohorts, key=lambda scope: sum(map(counts, scope.rows)), default=None)
    return best if best is not None and any(map(counts, best.rows)) else None


def score_columns(board: Board) -> tuple[tuple[str, str], ...]:
    """(key, axis label) of every score that a row with MIR has; the average first."""
    with_mir = [row for row in board.rows if row.mir is not None]
    labels = [(AVERAGE, "Average (%)")]
    labels += [(b.key, f"{b.name} ({'%' if b.unit == 'percent' else b.unit})") for b in board.benchmarks]
    return tuple((key, label) for key, label in labels if any(score_of(row, key) is not None for row in with_mir))


def main_column(board: Board) -> str | None:
    """The score to show first: the average if three rows of the main scope have it, else what most of them have.

    None where no row has MIR and a score.
    """
    scope = main_scope(board)
    if scope is None:
        return None
    counts = {key: sum(score_of(row, key) is not None for row in scope.rows) for key, _ in score_columns(board)}
    if counts.get(AVERAGE, 0) >= 3:
        return AVERAGE
    return max(counts, key=lambda key: counts[key], default=None)


@dataclass(frozen=True)
class LayerMetric:
    """A number that every layer has, to be plotted over layers."""

    key: str
    label: str
    value: Callable[[LayerDistance], float | None]


LAYER_METRICS = (
    LayerMetric("distance", "Distance (squared Fréchet)", lambda layer: layer.distance),
    LayerMetric("mean_term", "Mean term", lambda layer: layer.mean_term),
    LayerMetric(
        "covariance_part",
        "Covariance part (traces − 2 × trace term)",
        lambda layer: layer.trace_vision + layer.trace_text - 2 * layer.trace_term,
    ),
    LayerMetric("trace_term", "Trace term", lambda layer: layer.trace_term),
    LayerMetric("norm_ratio", "Norm ratio, vision to text", lambda layer: layer.norm_ratio),
    LayerMetric("mean_cosine", "Cosine of the means", lambda layer: layer.mean_cosine),
    LayerMetric("effective_rank_vision", "Effective rank, vision", lambda layer: layer.effective_rank_vision),
    LayerMetric("effective_rank_text", "Effective rank, text", lambda layer: layer.effective_rank_text),
)
