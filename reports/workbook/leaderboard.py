"""The Leaderboard sheet: ranked rows, averages as formulas over a row of weights, colours, best in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openpyxl.formatting.rule import ColorScaleRule, FormulaRule
from openpyxl.styles import Alignment, Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from mir_plugin.reports.board.board import AVERAGE, Board, BoardRow
from mir_plugin.reports.board.cohorts import describe
from mir_plugin.reports.view.columns import (
    AVERAGE_COLUMN,
    BestValues,
    Column,
    leaderboard_columns,
)
from mir_plugin.reports.workbook.sheets import (
    BOLD_FONT,
    INPUT_FILL,
    LINE,
    MUTED_FONT,
    TEXT_FONT,
    TITLE_FONT,
    WARNING_FILL,
    WARNING_FONT,
    ColumnStyle,
    put,
    put_formula,
    write_header,
)

GOOD, MIDDLE, BAD = "63BE7B", "FFFFFF", "F4A582"
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
        letter: str = get_column_letter([column.heading for column in self.columns].index(heading) + 1)
        return letter

    @property
    def first_row(self) -> int:
        """Row of the first checkpoint."""
        return self.header_row + 1

    @property
    def score_letters(self) -> tuple[str, ...]:
        """Letters of the benchmark columns; they stand side by side."""
        return tuple(get_column_letter(i) for i, c in enumerate(self.columns, start=1) if c.key not in ("", AVERAGE))


def layout(board: Board) -> Layout:
    """Rows: title, subtitle, cohorts, warnings, a blank one, factors, weights, header, then the checkpoints."""
    columns = leaderboard_columns(board)
    if board.benchmarks and AVERAGE_COLUMN not in columns:
        place = next((i for i, column in enumerate(columns) if column.key), len(columns))
        columns = (*columns[:place], AVERAGE_COLUMN, *columns[place:])
    top = 3 + len(board.cohorts) + len(board.warnings)
    return Layout(columns, factor_row=top + 1, weight_row=top + 2, header_row=top + 3)


def write_leaderboard(sheet: Worksheet, board: Board) -> None:
    """Fill the sheet."""
    plan = layout(board)
    _write_preamble(sheet, board)
    write_header(sheet, plan.columns, plan.header_row)
    if plan.score_letters:
        _write_weights(sheet, board, plan)
    best = BestValues.of(board)
    styled = [
        (column, ColumnStyle(column, TEXT_FONT, LINE), ColumnStyle(column, BOLD_FONT, LINE)) for column in plan.columns
    ]
    for number, row in enumerate(board.rows, start=plan.first_row):
        for index, (column, plain, bold) in enumerate(styled, start=1):
            cell = sheet.cell(number, index)
            if column.key == AVERAGE:
                put_formula(cell, average_formula(plan, number), row.average, column.number_format, border=LINE)
            else:
                value = column.value(row)
                style = bold if best.hold(column, row) else plain
                style.put(cell, None if value == "" else value)
    last = plan.header_row + max(len(board.rows), 1)
    name_index = [column.heading for column in plan.columns].index("Checkpoint") + 1 if board.rows else 1
    sheet.freeze_panes = sheet.cell(plan.first_row, name_index + 1)
    sheet.auto_filter.ref = f"A{plan.header_row}:{get_column_letter(max(len(plan.columns), 1))}{last}"
    if board.rows:
        _colour(sheet, board, plan, last)


def _write_preamble(sheet: Worksheet, board: Board) -> None:
    put(sheet.cell(1, 1), board.title, font=TITLE_FONT)
    sheet.row_dimensions[1].height = 26
    put(sheet.cell(2, 1), board.subtitle, font=MUTED_FONT)
    for number, cohort in enumerate(board.cohorts, start=3):
        put(sheet.cell(number, 1), f"Cohort {describe(cohort)}", font=MUTED_FONT)
    for number, warning in enumerate(board.warnings, start=3 + len(board.cohorts)):
        sheet.merge_cells(start_row=number, end_row=number, start_column=1, end_column=10)
        cell = put(sheet.cell(number, 1), f"⚠ {warning}", font=WARNING_FONT)
        cell.alignment = Alignment(wrap_text=True, vertical="center")
        sheet.row_dimensions[number].height = 16 * (1 + len(warning) // CHARACTERS_PER_LINE)
        cell.fill = WARNING_FILL


def _write_weights(sheet: Worksheet, board: Board, plan: Layout) -> None:
    by_key = {benchmark.key: benchmark for benchmark in board.benchmarks}
    right = Alignment(horizontal="right")
    average = plan.letter(AVERAGE_COLUMN.heading)
    for row, text in ((plan.factor_row, "as percent, times"), (plan.weight_row, "weight (change me)")):
        put(sheet[f"{average}{row}"], text, font=MUTED_FONT).alignment = right
    for index, column in enumerate(plan.columns, start=1):
        if column.key not in by_key:
            continue
        put(sheet.cell(plan.factor_row, index), by_key[column.key].to_percent, "0.###", MUTED_FONT)
        weight = put(sheet.cell(plan.weight_row, index), board.weights.get(column.key), "0.##")
        weight.fill = INPUT_FILL


def average_formula(plan: Layout, row: int) -> str:
    """Weighted mean of percentages, or an empty text when a benchmark with a weight has no score."""
    first, last = plan.score_letters[0], plan.score_letters[-1]
    scores = f"${first}{row}:${last}{row}"
    weights = f"${first}${plan.weight_row}:${last}${plan.weight_row}"
    factors = f"${first}${plan.factor_row}:${last}${plan.factor_row}"
    missing = f'SUMPRODUCT(({weights}>0)*({scores}=""))'
    return f'=IF(OR(SUM({weights})=0,{missing}>0),"",SUMPRODUCT({weights},{scores},{factors})/SUM({weights}))'


def _colour(sheet: Worksheet, board: Board, plan: Layout, last: int) -> None:
    directions = {benchmark.key: benchmark.higher_is_better for benchmark in board.benchmarks} | {AVERAGE: True}
    for index, column in enumerate(plan.columns, start=1):
        letter = get_column_letter(index)
        area = f"{letter}{plan.first_row}:{letter}{last}"
        if column.key:
            sheet.conditional_formatting.add(area, _scale(directions[column.key]))
        if column.key == AVERAGE:
            fixed = area.replace(letter, f"${letter}$")
            rule = FormulaRule(
                formula=[f"AND(ISNUMBER({letter}{plan.first_row}),{letter}{plan.first_row}=MAX({fixed}))"]
            )
            rule.font = Font(bold=True)
            sheet.conditional_formatting.add(area, rule)
        if column.heading == "MIR":
            for start, end in _cohort_blocks(board.rows, plan.first_row):
                sheet.conditional_formatting.add(f"{letter}{start}:{letter}{end}", _scale(higher_is_better=False))


def _scale(higher_is_better: bool) -> ColorScaleRule:
    low, high = (BAD, GOOD) if higher_is_better else (GOOD, BAD)
    return ColorScaleRule("min", None, low, "percentile", 50, MIDDLE, "max", None, high)


def _cohort_blocks(rows: Sequence[BoardRow], first_row: int) -> list[tuple[int, int]]:
    """First and last sheet row of every cohort; colours must not compare across them."""
    spans: dict[str, tuple[int, int]] = {}
    for number, row in enumerate(rows, start=first_row):
        if row.cohort:
            spans[row.cohort] = (spans.get(row.cohort, (number, number))[0], number)
    return list(spans.values())
