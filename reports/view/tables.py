"""The tables of the page as cells: display text, the value to sort by, and how a cell stands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    BoardRow,
    Coefficient,
)
from mir_plugin.reports.board.cohorts import briefly
from mir_plugin.reports.board.joint import score_of
from mir_plugin.reports.view.columns import (
    COEFFICIENTS,
    P_VALUE,
    TEXT,
    BestValues,
    Column,
    leaderboard_columns,
    rounded,
)
from mir_plugin.reports.view.series import scopes

R = TypeVar("R")

NEGATIVE_AGREES = (
    "Negative correlations agree with the paper: a lower MIR goes with higher scores (positive where lower scores are "
    "better)."
)
HIDDEN_AT_FIRST = frozenset({"MIR low", "MIR high", "MIR published upper", "n samples", "Identity", "Group"})
LOW_IS_BEST = frozenset({"Rank", "MIR", "MIR SE", "MIR low", "MIR high", "MIR published", "MIR published upper"})


@dataclass(frozen=True)
class Heading:
    """A column's heading: ``best`` is "low", "high", or "" for a column without direction."""

    text: str
    numeric: bool
    best: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell. ``heat`` runs from 0 (worst of its column) to 1 (best); None where that makes no sense."""

    text: str
    value: float | None = None
    heat: float | None = None
    best: bool = False
    partial: bool = False


@dataclass(frozen=True)
class LeaderboardRow:
    """One checkpoint; ``index`` is its place in ``board.rows`` and in the charts' data."""

    index: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows that may share a ranking, under a line that says what they have in common."""

    title: str
    rows: tuple[LeaderboardRow, ...]


def display(value: Any, number_format: str) -> str:
    """The value as a reader sees it: the column's decimals, a real minus sign, and nothing for a missing value.

    >>> display(-0.7126, "0.000"), display(1234.5, "#,##0.00"), display(0.00002, P_VALUE), display(None, "0")
    ('−0.713', '1,234.50', '< 0.001', '')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return storable(value)
    if number_format == P_VALUE and value < 0.001:
        return "< 0.001"
    places = len(number_format.rpartition(".")[2]) if "." in number_format else 0
    separator = "," if "," in number_format else ""
    text = rounded(value, places, separator) if number_format != TEXT else str(value)
    return text.replace("-", "−")


def plain_table(columns: Sequence[Column[R]], rows: Sequence[R]) -> dict[str, Any]:
    """Headings and rows of cells of a declared table."""
    cells = []
    for row in rows:
        values = [column.value(row) for column in columns]
        cells.append([Cell(display(v, c.number_format), number_of(v)) for v, c in zip(values, columns, strict=True)])
    return {"headings": [Heading(c.heading, c.number_format != TEXT) for c in columns], "rows": cells}


def number_of(value: Any) -> float | None:
    """What a cell is sorted by; None sorts by the text, and last if that is empty."""
    return float(value) if isinstance(value, (int, float)) else None


def page_columns(board: Board) -> tuple[Column[BoardRow], ...]:
    """The leaderboard's columns; cohorts are sections here, so they need none."""
    return tuple(column for column in leaderboard_columns(board) if column.heading != "Cohort")


def leaderboard_headings(board: Board) -> list[Heading]:
    """Headings with the direction that sorts first when a reader clicks."""
    lower_scores = {benchmark.key for benchmark in board.benchmarks if benchmark.higher_is_better is False}
    undirected = {benchmark.key for benchmark in board.benchmarks if benchmark.higher_is_better is None}
    headings = []
    for column in page_columns(board):
        best = "low" if column.heading in LOW_IS_BEST or column.key in lower_scores else "high" if column.key else ""
        best = "" if column.key in undirected else best
        hidden = column.heading in HIDDEN_AT_FIRST
        headings.append(Heading(column.heading, column.number_format != TEXT, best, hidden))
    return headings


def leaderboard_sections(board: Board) -> list[Section]:
    """The rows by cohort, so that no sorting can rank values of different cohorts against each other."""
    columns = page_columns(board)
    best = BestValues.of(board)
    ranges = _ranges(board)
    partial = {(entry.identity, entry.benchmark) for entry in board.entries if entry.used and not entry.complete}
    numbered = list(enumerate(board.rows))
    sections = []
    parts = [(f"Cohort {briefly(cohort)}", cohort.name) for cohort in board.cohorts] + [("Without MIR", "")]
    for title, cohort_name in parts:
        rows = tuple(
            LeaderboardRow(index, tuple(_cell(column, row, best, ranges, partial) for column in columns))
            for index, row in numbered
            if row.cohort == cohort_name
        )
        if rows:
            sections.append(Section(storable(title), rows))
    return sections


def _cell(
    column: Column[BoardRow],
    row: BoardRow,
    best: BestValues,
    ranges: Mapping[tuple[str, str], tuple[float, float]],
    partial: set[tuple[str, str]],
) -> Cell:
    value = column.value(row)
    heat = None
    place = (column.key, "") if column.key else (column.heading, row.cohort)
    if value is not None and place in ranges:
        worst, top = ranges[place]
        heat = round((value - worst) / (top - worst), 2)
    return Cell(
        display(value, column.number_format),
        number_of(value),
        heat,
        best.hold(column, row),
        (row.identity, column.key) in partial,
    )


def _ranges(board: Board) -> dict[tuple[str, str], tuple[float, float]]:
    """(score column, "") and ("MIR", cohort) → worst and best value; only where there are two different ones."""
    found = {}
    directed = [benchmark for benchmark in board.benchmarks if benchmark.higher_is_better is not None]
    lower = {benchmark.key for benchmark in directed if not benchmark.higher_is_better}
    for key in (AVERAGE, *(benchmark.key for benchmark in directed)):
        values = [value for row in board.rows if (value := score_of(row, key)) is not None]
        if len(set(values)) > 1:
            found[key, ""] = (max(values), min(values)) if key in lower else (min(values), max(values))
    for cohort in board.cohorts:
        mir = [row.mir for row in board.rows if row.cohort == cohort.name and row.mir is not None]
        if len(set(mir)) > 1:
            found["MIR", cohort.name] = max(mir), min(mir)
    return found


def average_rule(board: Board) -> str:
    """How the average comes about, in words; empty when there is none."""
    parts = []
    for benchmark in (*board.benchmarks, *board.absent):
        weight = board.weights.get(benchmark.key, 0)
        if weight > 0:
            scale = f" ÷ {1 / benchmark.to_percent:g}" if benchmark.to_percent not in (0, 1) else ""
            parts.append(benchmark.name + scale + (f" (weight {weight:g})" if weight != 1 else ""))
    if not parts or not board.benchmarks:
        return ""
    title = f"{board.average_title} ({board.average_set}): " if board.average_title else ""
    absent = f" No checkpoint here has {', '.join(one.name for one in board.absent)}." if board.absent else ""
    return storable(f"Average: mean of {title}{', '.join(parts)}; empty where one is missing.{absent}")


@dataclass(frozen=True)
class CoefficientCell:
    """A coefficient in words, and its place on a track from −1 to 1, in percent of the track's length."""

    text: str = ""
    interval: str = ""
    p_value: str = ""
    p_holm: str = ""
    left_out: str = ""
    value: float | None = None
    place: float | None = None
    start: float | None = None
    length: float | None = None


@dataclass(frozen=True)
class CorrelationRow:
    """One correlation; ``scope_key`` filters the table."""

    scope_key: str
    scope: str
    score: str
    n: int
    cells: tuple[CoefficientCell, ...]
    note: str


def correlation_rows(board: Board) -> list[CorrelationRow]:
    """All correlations in the board's order."""
    labels = {scope.key: scope.label for scope in scopes(board)}
    names = {benchmark.key: benchmark.name for benchmark in board.benchmarks} | {AVERAGE: "Average"}
    return [
        CorrelationRow(
            storable(correlation.scope),
            storable(labels[correlation.scope]),
            storable(names[correlation.benchmark]),
            correlation.n,
            tuple(_coefficient(pick(correlation)) for _, _, pick in COEFFICIENTS),
            storable(correlation.note),
        )
        for correlation in board.correlations
    ]


def interval(low: float | None, high: float | None, number_format: str) -> str:
    """ "[low, high]", or nothing."""
    if low is None or high is None:
        return ""
    return f"[{display(low, number_format)}, {display(high, number_format)}]"


def _coefficient(coefficient: Coefficient) -> CoefficientCell:
    if coefficient.value is None:
        return CoefficientCell()
    low, high = coefficient.low, coefficient.high
    return CoefficientCell(
        display(coefficient.value, "0.00"),
        interval(low, high, "0.00"),
        display(coefficient.p_value, P_VALUE),
        display(coefficient.p_holm, P_VALUE),
        interval(coefficient.leave_one_out_low, coefficient.leave_one_out_high, "0.00"),
        coefficient.value,
        round(50 + 50 * coefficient.value, 1),
        None if low is None else round(50 + 50 * low, 1),
        None if low is None or high is None else round(50 * (high - low), 1),
    )
