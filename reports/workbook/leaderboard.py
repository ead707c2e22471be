"""The Leaderboard sheet: ranked rows, averages as formulas over a row of weights, colours, best in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mir_plugin.reports.board.board import AVERAGE, Board, BoardRow
from mir_plugin.reports.board.cohorts import briefly
from mir_plugin.reports.view.columns import AVERAGE_COLUMN, BestValues, Column, leaderboard_columns
from mir_plugin.reports.view.tables import average_rule
from mir_plugin.reports.workbook.sheets import (
    BOLD_LOOK,
    INPUT_FILL,
    LINE_LOOK,
    MUTED_LOOK,
    PLAIN_LOOK,
    TITLE_LOOK,
    WARNING_FILL,
    ColumnWriter,
    Look,
    Sheet,
    column_letter,
    write_header,
)

WARNING_LOOK: Look = {"font_color": "#7C2D12", "text_wrap": True, "valign": "vcenter", **WARNING_FILL}
GOOD, MIDDLE, BAD = "#63BE7B", "#FFFFFF", "#F4A582"
CHARACTERS_PER_LINE = 130


@dataclass(frozen=True)
class Layout:
    """Where things are on the Leaderboard sheet; other sheets refer to its cells."""

    columns: tuple[Column[BoardRow], ...]
    factor_row: int
    weight_row: int
    header_row: int

    def letter(self, heading: str) -> str:
        """Column letter of a heading. Raises ValueError if the sheet lacks it."""
        return column_letter([column.heading for column in self.columns].index(heading) + 1)

    @property
    def first_row(self) -> int:
        """Row of the first checkpoint."""
        return self.header_row + 1

    @property
    def score_letters(self) -> tuple[str, ...]:
        """Letters of the benchmark columns; they stand side by side."""
        return tuple(column_letter(i) for i, c in enumerate(self.columns, start=1) if c.key not in ("", AVERAGE))


def layout(board: Board) -> Layout:
    """Rows: title, subtitle, cohorts, warnings, a blank one, factors, weights, header, then the checkpoints."""
    columns = leaderboard_columns(board)
    if board.benchmarks and AVERAGE_COLUMN not in columns:
        place = next((i for i, column in enumerate(columns) if column.key), len(columns))
        columns = (*columns[:place], AVERAGE_COLUMN, *columns[place:])
    top = 3 + len(board.cohorts) + len(board.warnings)
    return Layout(columns, factor_row=top + 1, weight_row=top + 2, header_row=top + 3)


def write_leaderboard(sheet: Sheet, board: Board) -> None:
    """Fill the sheet."""
    plan = layout(board)
    _write_preamble(sheet, board)
    write_header(sheet, plan.columns, plan.header_row)
    if plan.score_letters:
        _write_weights(sheet, board, plan)
    _write_rows(sheet, board, plan)
    last = plan.header_row + max(len(board.rows), 1)
    n_frozen = [column.heading for column in plan.columns].index("Checkpoint") + 1 if board.rows else 1
    sheet.xlsx.freeze_panes(plan.header_row, n_frozen)
    sheet.xlsx.autofilter(plan.header_row - 1, 0, last - 1, max(len(plan.columns), 1) - 1)
    if board.rows:
        _colour(sheet, board, plan, last)


def _write_rows(sheet: Sheet, board: Board, plan: Layout) -> None:
    best = BestValues.of(board)
    plain, bold = {**PLAIN_LOOK, **LINE_LOOK}, {**BOLD_LOOK, **LINE_LOOK}
    writers = [
        (column, index, ColumnWriter(sheet, index, column, plain), ColumnWriter(sheet, index, column, bold))
        for index, column in enumerate(plan.columns, start=1)
    ]
    for number, row in enumerate(board.rows, start=plan.first_row):
        for column, index, in_plain, in_bold in writers:
            if column.key == AVERAGE:
                formula = average_formula(plan, number)
                sheet.put_formula(number, index, formula, row.average, column.number_format, plain)
            else:
                value = column.value(row)
                writer = in_bold if best.hold(column, row) else in_plain
                writer.put(number, None if value == "" else value)


def _write_preamble(sheet: Sheet, board: Board) -> None:
    sheet.put(1, 1, board.title, look={**TITLE_LOOK, "indent": 0})
    sheet.xlsx.set_row(0, 26)
    sheet.put(2, 1, f"{board.subtitle} {average_rule(board)}".strip(), look=MUTED_LOOK)
    for number, cohort in enumerate(board.cohorts, start=3):
        sheet.put(number, 1, f"Cohort {briefly(cohort)}", look=MUTED_LOOK)
    for number, warning in enumerate(board.warnings, start=3 + len(board.cohorts)):
        sheet.xlsx.merge_range(number - 1, 0, number - 1, 9, "", sheet.book.format(WARNING_LOOK))
        sheet.put(number, 1, f"⚠ {warning}", look=WARNING_LOOK)
        sheet.xlsx.set_row(number - 1, 16 * (1 + len(warning) // CHARACTERS_PER_LINE))


def _write_weights(sheet: Sheet, board: Board, plan: Layout) -> None:
    by_key = {benchmark.key: benchmark for benchmark in board.benchmarks}
    average = [column.heading for column in plan.columns].index(AVERAGE_COLUMN.heading) + 1
    for row, text in ((plan.factor_row, "as percent, times"), (plan.weight_row, "weight (change me)")):
        sheet.put(row, average, text, look={**MUTED_LOOK, "align": "right"})
    for index, column in enumerate(plan.columns, start=1):
        if column.key in by_key:
            sheet.put(plan.factor_row, index, by_key[column.key].to_percent, "0.###", MUTED_LOOK)
            # With a benchmark missing the average is empty; whoever wants another one writes weights.
            weight = None if board.absent else board.weights.get(column.key)
            sheet.put(plan.weight_row, index, weight, "0.##", {**PLAIN_LOOK, **INPUT_FILL})


def average_formula(plan: Layout, row: int) -> str:
    """Weighted mean of percentages, or an empty text when a benchmark with a weight has no score."""
    first, last = plan.score_letters[0], plan.score_letters[-1]
    scores = f"${first}{row}:${last}{row}"
    weights = f"${first}${plan.weight_row}:${last}${plan.weight_row}"
    factors = f"${first}${plan.factor_row}:${last}${plan.factor_row}"
    missing = f'SUMPRODUCT(({weights}>0)*({scores}=""))'
    return f'=IF(OR(SUM({weights})=0,{missing}>0),"",SUMPRODUCT({weights},{scores},{factors})/SUM({weights}))'


def _colour(sheet: Sheet, board: Board, plan: Layout, last: int) -> None:
    directions = {benchmark.key: benchmark.higher_is_better for benchmark in board.benchmarks} | {AVERAGE: True}
    for index, column in enumerate(plan.columns, start=1):
        letter = column_letter(index)
        area = f"{letter}{plan.first_row}:{letter}{last}"
        higher_is_better = directions.get(column.key)
        if higher_is_better is not None:
            sheet.xlsx.conditional_format(area, _scale(higher_is_better))
        if column.key == AVERAGE:
            fixed, first = area.replace(letter, f"${letter}$"), f"{letter}{plan.first_row}"
            criteria = f"=AND(ISNUMBER({first}),{first}=MAX({fixed}))"
            bold = sheet.book.rule_format({"bold": True})
            sheet.xlsx.conditional_format(area, {"type": "formula", "criteria": criteria, "format": bold})
        if column.heading == "MIR":
            for start, end in _cohort_blocks(board.rows, plan.first_row):
                sheet.xlsx.conditional_format(f"{letter}{start}:{letter}{end}", _scale(higher_is_better=False))


def _scale(higher_is_better: bool) -> dict[str, Any]:
    low, high = (BAD, GOOD) if higher_is_better else (GOOD, BAD)
    return {
        "type": "3_color_scale",
        "min_color": low,
        "mid_type": "percentile",
        "mid_value": 50,
        "mid_color": MIDDLE,
        "max_color": high,
    }


def _cohort_blocks(rows: Sequence[BoardRow], first_row: int) -> list[tuple[int, int]]:
    """First and last sheet row of every cohort; colours must not compare across them."""
    spans: dict[str, tuple[int, int]] = {}
    for number, row in enumerate(rows, start=first_row):
        if row.cohort:
            spans[row.cohort] = (spans.get(row.cohort, (number, number))[0], number)
    return list(spans.values())
