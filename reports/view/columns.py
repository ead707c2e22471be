"""What the tables of a report show: one declared list of columns per table, shared by all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Generic, TypeVar

from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    BoardRow,
    Coefficient,
    Correlation,
    ScoreEntry,
)
from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.reports.read.records import Problem, Run, VerdictRow, VerdictRun
from mir_plugin.reports.view.series import scopes
from mir_plugin.results import LayerDistance

R = TypeVar("R")

THREE_PLACES, TWO_PLACES, ONE_PLACE, WHOLE, TEXT = "0.000", "0.00", "0.0", "0", "@"
P_VALUE = '[<0.001]"< 0.001";0.000'


EXACT_BELOW = 1e15  # floats hold 15 digits


def rounded(value: float, places: int, separator: str = "") -> str:
    """The number as spreadsheets and browsers round it, so that all formats of a report show the same digits.

    >>> rounded(57.25, 1), f"{57.25:.1f}", rounded(57.05, 1), f"{57.05:.1f}", rounded(-1234.5, 0, ",")
    ('57.3', '57.2', '57.1', '57.0', '-1,235')
    """
    if abs(value) >= EXACT_BELOW:
        return f"{value:{separator}.{places}f}"
    exact = Decimal(f"{value:.15g}").quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return f"{exact:{separator}.{places}f}"


def dated(date: str) -> str:
    """The date, with a remark where it is a time that no zone was recorded for.

    >>> dated("2026-11-21T09:53:19"), dated("2026-11-21T09:53:19+00:00"), dated("2026-11-21")
    ('2026-11-21T09:53:19 (local time)', '2026-11-21T09:53:19+00:00', '2026-11-21')
    """
    zoned = date.endswith("Z") or "+" in date or date[10:].count("-") > 0
    return date if "T" not in date or zoned else f"{date} (local time)"


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column: its heading, where its value comes from, and how it looks.

    Attributes:
        value: the cell of a row; None is an empty cell.
        number_format: a spreadsheet's number format, or ``TEXT``.
        width: in characters.
        key: benchmark key, or ``AVERAGE``, of a score's column.
    """

    heading: str
    value: Callable[[R], Any]
    number_format: str = TEXT
    width: float = 12
    wraps: bool = False
    key: str = ""


def filled(columns: Iterable[Column[R]], rows: Sequence[R]) -> tuple[Column[R], ...]:
    """The columns in which any row has a value."""
    return tuple(column for column in columns if any(column.value(row) not in (None, "") for row in rows))


def benchmark_column(benchmark: Benchmark) -> Column[BoardRow]:
    """The column of one benchmark on its own scale."""
    return Column(
        benchmark.name,
        lambda row: row.scores.get(benchmark.key),
        f"{0:.{benchmark.decimals}f}",
        max(10, len(benchmark.name) + 3),
        key=benchmark.key,
    )


PLACE_COLUMNS: tuple[Column[BoardRow], ...] = (
    Column("Rank", lambda row: row.rank, WHOLE, 7),
    Column("Checkpoint", lambda row: row.name, TEXT, 38),
    Column("Group", lambda row: row.group, TEXT, 30),
    Column("Run", lambda row: row.run, TEXT, 24),
    Column("Step", lambda row: row.step, WHOLE, 9),
    Column("Scores of", lambda row: row.finetuned, TEXT, 30),
    Column("Cohort", lambda row: row.cohort, TEXT, 9),
)
MIR_COLUMNS: tuple[Column[BoardRow], ...] = (
    Column("MIR", lambda row: row.mir, THREE_PLACES, 9),
    Column("MIR SE", lambda row: row.mir_standard_error, THREE_PLACES, 9),
    Column("MIR low", lambda row: row.mir_interval[0] if row.mir_interval else None, THREE_PLACES, 10),
    Column("MIR high", lambda row: row.mir_interval[1] if row.mir_interval else None, THREE_PLACES, 10),
    Column("MIR published", lambda row: row.mir_published, THREE_PLACES, 15),
    Column("MIR published upper", lambda row: row.mir_published_upper, THREE_PLACES, 15),
    Column("MIR at equal length", lambda row: row.mir_at_equal_length, THREE_PLACES, 15),
    Column("Length share", lambda row: row.length_share, THREE_PLACES, 12),
)
AVERAGE_COLUMN: Column[BoardRow] = Column("Average", lambda row: row.average, ONE_PLACE, 10, key=AVERAGE)
ORIGIN_COLUMNS: tuple[Column[BoardRow], ...] = (
    Column("n samples", lambda row: row.n_samples, WHOLE, 10),
    Column("Identity", lambda row: row.identity, TEXT, 44),
)


def leaderboard_columns(board: Board) -> tuple[Column[BoardRow], ...]:
    """Columns of the ranked table; those that no row fills are left out."""
    columns = (
        *PLACE_COLUMNS,
        *MIR_COLUMNS,
        AVERAGE_COLUMN,
        *map(benchmark_column, board.benchmarks),
        *ORIGIN_COLUMNS,
    )
    if len(board.cohorts) < 2:
        columns = tuple(column for column in columns if column.heading != "Cohort")
    return filled(columns, board.rows)


@dataclass(frozen=True)
class BestValues:
    """The values that are shown in bold; MIR values compete only inside a cohort of several."""

    scores: Mapping[str, float | None]
    mir: Mapping[str, float | None]

    @classmethod
    def of(cls, board: Board) -> BestValues:
        """Of all score columns and cohorts of a board."""
        keys = (AVERAGE, *(benchmark.key for benchmark in board.benchmarks))
        return cls(
            {key: board.best(key) for key in keys},
            {cohort.name: board.lowest_mir(cohort.name) for cohort in board.cohorts if cohort.n_rows > 1},
        )

    def hold(self, column: Column[BoardRow], row: BoardRow) -> bool:
        """Whether the row has the best value of the column."""
        value = column.value(row)
        best = self.mir.get(row.cohort) if column.heading == "MIR" else self.scores.get(column.key)
        return value is not None and bool(value == best)


SCORE_COLUMNS: tuple[Column[ScoreEntry], ...] = (
    Column("Checkpoint", lambda e: e.name, TEXT, 34),
    Column("Benchmark", lambda e: e.benchmark, TEXT, 17),
    Column("Score", lambda e: e.value, TWO_PLACES, 10),
    Column("Status", lambda e: ("used" if e.used else "not used") + ("" if e.complete else ", partial"), TEXT, 17),
    Column("Host", lambda e: e.host, TEXT, 12),
    Column("Task", lambda e: e.task, TEXT, 26),
    Column("Field", lambda e: e.metric, TEXT, 24),
    Column("As written", lambda e: e.raw_value, "0.0000", 12),
    Column("Rows", lambda e: e.n_samples, WHOLE, 9),
    Column("Date", lambda e: dated(e.date), TEXT, 34),
    Column("Source", lambda e: e.run_id, TEXT, 60),
)

COEFFICIENTS: tuple[tuple[str, str, Callable[[Correlation], Coefficient]], ...] = (
    ("Pearson", "r", lambda c: c.pearson),
    ("Spearman", "ρ", lambda c: c.spearman),
    ("Kendall", "τ", lambda c: c.kendall),
)
COEFFICIENT_COLUMNS: tuple[Column[Coefficient], ...] = (
    Column("{name} {symbol}", lambda c: c.value, THREE_PLACES, 11),
    Column("p of {symbol}", lambda c: c.p_value, P_VALUE, 10),
    Column("p of {symbol}, Holm", lambda c: c.p_holm, P_VALUE, 13),
    Column("{symbol} 95 % low", lambda c: c.low, THREE_PLACES, 11),
    Column("{symbol} 95 % high", lambda c: c.high, THREE_PLACES, 11),
    Column("{symbol} LOO low", lambda c: c.leave_one_out_low, THREE_PLACES, 11),
    Column("{symbol} LOO high", lambda c: c.leave_one_out_high, THREE_PLACES, 11),
)


def correlation_columns(board: Board) -> tuple[Column[Correlation], ...]:
    """Scope, score, n, six columns for each coefficient, and the note."""
    names = {benchmark.key: benchmark.name for benchmark in board.benchmarks} | {AVERAGE: "Average"}
    labels = {scope.key: scope.label for scope in scopes(board)}
    cells = [
        Column(
            column.heading.format(name=name, symbol=symbol), _through(column, pick), column.number_format, column.width
        )
        for name, symbol, pick in COEFFICIENTS
        for column in COEFFICIENT_COLUMNS
    ]
    return (
        Column("Rows", lambda c: labels.get(c.scope, c.scope), TEXT, 34),
        Column("MIR against", lambda c: names[c.benchmark], TEXT, 20),
        Column("n", lambda c: c.n, WHOLE, 6),
        *cells,
        Column("Note", lambda c: c.note, TEXT, 48),
    )


def _through(
    column: Column[Coefficient], pick: Callable[[Correlation], Coefficient]
) -> Callable[[Correlation], float | None]:
    return lambda correlation: column.value(pick(correlation))


@dataclass(frozen=True)
class LayerRow:
    """One layer of one checkpoint."""

    name: str
    cohort: str
    layer: LayerDistance


LAYER_COLUMNS: tuple[Column[LayerRow], ...] = (
    Column("Checkpoint", lambda r: r.name, TEXT, 38),
    Column("Layer", lambda r: r.layer.layer, WHOLE, 8),
    Column("Distance", lambda r: r.layer.distance, "#,##0.00", 12),
    Column("Mean term", lambda r: r.layer.mean_term, "#,##0.00", 12),
    Column("Trace vision", lambda r: r.layer.trace_vision, "#,##0.00", 13),
    Column("Trace text", lambda r: r.layer.trace_text, "#,##0.00", 12),
    Column("Trace term", lambda r: r.layer.trace_term, "#,##0.00", 12),
    Column("Norm ratio", lambda r: r.layer.norm_ratio, THREE_PLACES, 12),
)
LAYER_DETAILS: tuple[Column[LayerRow], ...] = (
    Column("Cohort", lambda r: r.cohort, TEXT, 9),
    Column("Distance, published", lambda r: r.layer.distance_published, "#,##0.00", 13),
    Column("Norm vision", lambda r: r.layer.mean_norm_vision, "#,##0.00", 13),
    Column("Norm text", lambda r: r.layer.mean_norm_text, "#,##0.00", 12),
    Column("Cosine of means", lambda r: r.layer.mean_cosine, THREE_PLACES, 12),
    Column("Effective rank vision", lambda r: r.layer.effective_rank_vision, ONE_PLACE, 15),
    Column("Effective rank text", lambda r: r.layer.effective_rank_text, ONE_PLACE, 15),
    Column("Length term", lambda r: r.layer.length_term, "#,##0.00", 12),
    Column("Longest vision", lambda r: r.layer.longest_vision, THREE_PLACES, 13),
    Column("Longest text", lambda r: r.layer.longest_text, THREE_PLACES, 13),
    Column("Vision tokens", lambda r: r.layer.n_vision_tokens, "#,##0", 12),
    Column("Text tokens", lambda r: r.layer.n_text_tokens, "#,##0", 12),
    Column("Vision outliers", lambda r: r.layer.n_vision_outliers, "#,##0", 12),
    Column("Text outliers", lambda r: r.layer.n_text_outliers, "#,##0", 12),
)
MAX_DETAILED_ROWS = 5_000  # a workbook of hundreds of checkpoints stays quick to write and to open


def layer_columns(rows: Sequence[LayerRow]) -> tuple[Column[LayerRow], ...]:
    """The per-layer table; its details only where there are not too many rows, as mir.json holds them anyway."""
    columns = LAYER_COLUMNS + (LAYER_DETAILS if len(rows) <= MAX_DETAILED_ROWS else ())
    return filled(columns, rows)


def layer_rows(board: Board) -> list[LayerRow]:
    """All layers of all checkpoints, in the order of the leaderboard."""
    return [LayerRow(row.name, row.cohort, layer) for row in board.rows for layer in row.layers]


RUN_COLUMNS: tuple[Column[Run], ...] = (
    Column("Checkpoint", lambda r: r.checkpoint, TEXT, 44),
    Column("Host", lambda r: r.host, TEXT, 12),
    Column("Date", lambda r: dated(r.date), TEXT, 34),
    Column("Extent", lambda r: "complete" if r.complete else "partial", TEXT, 11),
    Column("Tasks", lambda r: ", ".join(r.tasks), TEXT, 44),
    Column("Samples", lambda r: r.fingerprints.get("samples"), TEXT, 19),
    Column("Protocol", lambda r: r.fingerprints.get("protocol"), TEXT, 19),
    Column("Weights", lambda r: r.fingerprints.get("checkpoint"), TEXT, 19),
    Column("Versions", lambda r: ", ".join(f"{name} {v}" for name, v in sorted(r.versions.items())), TEXT, 96),
    Column("Source", lambda r: r.source, TEXT, 70),
)

VERDICT_COLUMNS: tuple[Column[VerdictRow], ...] = (
    Column("Checkpoint", lambda r: r.name, TEXT, 40),
    Column("Run", lambda r: r.run, TEXT, 30),
    Column("Step", lambda r: r.step, WHOLE, 9),
    Column("MIR", lambda r: r.mir, THREE_PLACES, 9),
    Column("Compared with", lambda r: r.against, TEXT, 40),
    Column("Behind it", lambda r: r.behind, THREE_PLACES, 10),
    Column("Behind, low", lambda r: r.low, THREE_PLACES, 10),
    Column("Behind, high", lambda r: r.high, THREE_PLACES, 10),
    Column("Standing", lambda r: r.standing, TEXT, 20),
)
VERDICT_RUN_COLUMNS: tuple[Column[VerdictRun], ...] = (
    Column("Run", lambda r: r.run, TEXT, 40),
    Column("Best checkpoint", lambda r: r.best.name, TEXT, 30),
    Column("Step", lambda r: r.best.step, WHOLE, 9),
    Column("MIR", lambda r: r.best.mir, THREE_PLACES, 9),
    Column("Trend", lambda r: r.trend, TEXT, 16),
    Column("Saturated at", lambda r: r.saturated_at, TEXT, 30),
    Column("Behind the best run", lambda r: r.best.behind, THREE_PLACES, 12),
    Column("Standing of its best", lambda r: r.best.standing if r.sentence else "", TEXT, 18),
    Column("Verdict along its steps", lambda r: r.sentence, TEXT, 80, wraps=True),
)

PROBLEM_COLUMNS: tuple[Column[Problem], ...] = (
    Column("Severity", lambda p: p.severity, TEXT, 12, wraps=True),
    Column("Kind", lambda p: p.kind, TEXT, 16, wraps=True),
    Column("Where", lambda p: p.where, TEXT, 38, wraps=True),
    Column("What", lambda p: p.what, TEXT, 80, wraps=True),
    Column("What to do", lambda p: p.remedy, TEXT, 48, wraps=True),
)
