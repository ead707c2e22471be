"""The numbers that a reader of the page looks for first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import AVERAGE, Board
from mir_plugin.reports.board.joint import score_of
from mir_plugin.reports.view.columns import leaderboard_columns
from mir_plugin.reports.view.series import main_column, main_scope
from mir_plugin.reports.view.tables import display, interval


@dataclass(frozen=True)
class Highlight:
    """One number, what it is, and whose it is or how sure."""

    label: str
    value: str
    detail: str


def highlights(board: Board) -> Iterator[Highlight]:
    """Lowest MIR, best average (without one: best main score), and their rank correlation.

    Of the cohort with most points, without points of the largest.
    """
    if not board.cohorts:
        return
    scope = main_scope(board)
    cohort = scope.key if scope else board.cohorts[0].name
    of = f" of cohort {cohort}" if len(board.cohorts) > 1 else ""
    members = [row for row in board.rows if row.cohort == cohort]
    lowest = board.lowest_mir(cohort)
    if lowest is not None:
        names = [storable(row.name) for row in members if row.mir == lowest]
        yield Highlight(f"Lowest MIR{of}", display(lowest, "0.000"), " · ".join(names))
    key = AVERAGE if any(row.average is not None for row in members) else main_column(board)
    scores = [score for row in members if key is not None and (score := score_of(row, key)) is not None]
    if key is None or not scores:
        return
    column = next(column for column in leaderboard_columns(board) if column.key == key)
    heading = "average" if key == AVERAGE else storable(column.heading)
    higher = True if key == AVERAGE else board.benchmark(key).higher_is_better
    if higher is None:
        return
    best = max(scores) if higher else min(scores)
    names = [storable(row.name) for row in members if score_of(row, key) == best]
    label = f"{'Highest' if higher else 'Lowest'} {heading}{of}"
    yield Highlight(label, display(best, column.number_format), " · ".join(names))
    for correlation in board.correlations:
        rho = correlation.spearman
        if (correlation.scope, correlation.benchmark) == (cohort, key) and rho.value is not None:
            detail = " ".join(filter(None, (interval(rho.low, rho.high, "0.00"), f"n = {correlation.n}")))
            yield Highlight(f"Spearman ρ, MIR and {heading}{of}", display(rho.value, "0.00"), detail)
