"""The leaderboard and the correlations as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from mir_plugin.files.outside_text import csv_table, latex_text, markdown_text
from mir_plugin.reports.board.board import AVERAGE, Board, BoardRow
from mir_plugin.reports.board.cohorts import briefly
from mir_plugin.reports.read.records import COMPARABILITY_PARTS
from mir_plugin.reports.view.columns import (
    COEFFICIENTS,
    P_VALUE,
    VERDICT_COLUMNS,
    VERDICT_RUN_COLUMNS,
    BestValues,
    Column,
    correlation_columns,
    filled,
    leaderboard_columns,
    rounded,
)
from mir_plugin.reports.view.tables import NEGATIVE_AGREES, average_rule, display
from mir_plugin.reports.view.training import dependence

R = TypeVar("R")

LEFT_OUT_OF_PRINT = frozenset({"Identity", "n samples", "MIR low", "MIR high"})
LEFT_OUT_OF_LATEX = frozenset({"Group", "Run", "Step", "Scores of", "MIR SE", "MIR published upper"})
MAX_LATEX_SCORES = 9
ALIGNED_LEFT = frozenset(
    {
        "Checkpoint",
        "Run",
        "Scores of",
        "Standing",
        "Trend",
        "Best checkpoint",
        "Saturated at",
        "Compared with",
        "Standing of its best",
        "Verdict along its steps",
        "Group",
        "Cohort",
        "Rows",
        "MIR against",
        "Note",
    }
)
PRINTED_CORRELATION = frozenset(
    {"Rows", "MIR against", "n", "Note", *(f"{name} {symbol}" for name, symbol, _ in COEFFICIENTS)}
    | {f"p of {symbol}{holm}" for _, symbol, _ in COEFFICIENTS for holm in ("", ", Holm")}
)


def to_csv(board: Board) -> str:
    """All columns of the leaderboard with full precision, and how MIR was measured; missing values are empty cells.

    A report can be made from this file again: names that a spreadsheet would take for formulas get an apostrophe.
    """
    columns = leaderboard_columns(board)
    measured = {cohort.name: cohort.comparability for cohort in board.cohorts}
    over = {AVERAGE: f" ({board.average_set})"} if board.average_set else {}
    rows: list[list[Any]] = [[*(c.heading + over.get(c.key, "") for c in columns), *COMPARABILITY_PARTS]]
    for row in board.rows:
        how = [getattr(measured[row.cohort], name) if row.cohort else None for name in COMPARABILITY_PARTS]
        rows.append([*(column.value(row) for column in columns), *how])
    return csv_table(rows)


def to_markdown(board: Board) -> str:
    """Leaderboard, warnings and correlations, for a paper's draft or a model card; best values in bold."""
    parts = [f"# {markdown_text(board.title)}", *_verdicts_in_markdown(board)]
    parts += [f"> **Note:** {markdown_text(text)}" for text in board.warnings]
    columns = _printed(board)
    best = BestValues.of(board)
    parts.append(_markdown_table(columns, [_cells(best, columns, row, markdown_text, "**{}**") for row in board.rows]))
    parts += [markdown_text(text) for text in (average_rule(board),) if text]
    parts += [f"Cohort {markdown_text(briefly(cohort))}." for cohort in board.cohorts]
    if board.correlations:
        printed = [column for column in correlation_columns(board) if column.heading in PRINTED_CORRELATION]
        rows = [[_plain(column, c, markdown_text) for column in printed] for c in board.correlations]
        parts += [
            "## Correlation of MIR with scores",
            " ".join((NEGATIVE_AGREES, *dependence(board))),
            _markdown_table(printed, rows),
        ]
    return "\n\n".join(parts) + "\n"


def _verdicts_in_markdown(board: Board) -> list[str]:
    parts = []
    for verdict in board.verdicts:
        columns, run_columns = filled(VERDICT_COLUMNS, verdict.rows), filled(VERDICT_RUN_COLUMNS, verdict.runs)
        parts += [
            "## Verdict",
            f"**{markdown_text(verdict.sentence)}**",
            "\n".join(f"* {markdown_text(text)}" for text in (*verdict.reasons, *verdict.warnings)),
            _markdown_table(columns, [[_plain(c, row, markdown_text) for c in columns] for row in verdict.rows]),
            _markdown_table(run_columns, [[_plain(c, r, markdown_text) for c in run_columns] for r in verdict.runs]),
        ]
    return parts + ["## Leaderboard"] * bool(parts)


def _markdown_table(columns: Sequence[Column[R]], rows: Iterable[Sequence[str]]) -> str:
    rules = [":--" if column.heading in ALIGNED_LEFT else "--:" for column in columns]
    lines = [[markdown_text(column.heading) for column in columns], rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(board: Board) -> str:
    """The leaderboard as a ``booktabs`` table, best values in bold; warnings stand in the caption.

    As many scores as fit on a page: those of the average, else the first ones. The CSV file holds all.
    """
    columns = _printed_in_latex(board)
    shape = "".join("l" if column.heading in ALIGNED_LEFT else "r" for column in columns)
    best = BestValues.of(board)
    rows = [_cells(best, columns, row, latex_text, r"\textbf{{{}}}") for row in board.rows]
    measured = [f"MIR: {briefly(cohort)}." for cohort in board.cohorts]
    rule = average_rule(board) if any(row.average is not None for row in board.rows) else ""
    texts = (f"{board.title}.", rule, *measured, *board.warnings)
    caption = " ".join(latex_text(text) for text in texts if text)
    verdicts = [
        (latex_text(one.sentence), *(f"% {latex_text(text)}" for text in one.reasons)) for one in board.verdicts
    ]
    lines = [
        *(line for told in verdicts for line in told),
        r"% needs \usepackage{booktabs}; report.csv holds all columns",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        r"\label{tab:mir}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(latex_text(column.heading) + _direction(board, column) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _printed_in_latex(board: Board) -> list[Column[BoardRow]]:
    columns = [column for column in _printed(board) if column.heading not in LEFT_OUT_OF_LATEX]
    scores = [column for column in columns if column.key not in ("", AVERAGE)]
    averaged = [column for column in scores if board.weights.get(column.key, 0) > 0]
    chosen = (averaged or scores)[:MAX_LATEX_SCORES]
    return [column for column in columns if column not in scores or column in chosen]


def _direction(board: Board, column: Column[BoardRow]) -> str:
    if column.heading.startswith("MIR") and column.heading != "MIR SE":
        return r" $\downarrow$"
    if column.key == AVERAGE:
        return r" $\uparrow$"
    if column.key:
        return {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[board.benchmark(column.key).higher_is_better]
    return ""


def _printed(board: Board) -> list[Column[BoardRow]]:
    return [column for column in leaderboard_columns(board) if column.heading not in LEFT_OUT_OF_PRINT]


def _cells(
    best: BestValues, columns: Sequence[Column[BoardRow]], row: BoardRow, text: Callable[[str], str], bold: str
) -> list[str]:
    cells = []
    for column in columns:
        cell = _plain(column, row, text)
        cells.append(bold.format(cell) if cell and best.hold(column, row) else cell)
    return cells


def _plain(column: Column[R], row: R, text: Callable[[str], str]) -> str:
    value = column.value(row)
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        if column.number_format == P_VALUE:
            return text(display(value, P_VALUE))
        places = len(column.number_format.rpartition(".")[2]) if "." in column.number_format else 0
        return rounded(value, places)
    return text(str(value))
