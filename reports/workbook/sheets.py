"""How a declared table becomes a sheet; and the plain sheets Scores, Runs and Problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

from openpyxl.cell import Cell
from openpyxl.formatting.rule import FormulaRule
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.styles.cell_style import StyleArray
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from mir_plugin.reports.board.board import Board
from mir_plugin.reports.read.cell_text import starts_a_formula, storable
from mir_plugin.reports.view.columns import (
    PROBLEM_COLUMNS,
    RUN_COLUMNS,
    SCORE_COLUMNS,
    TEXT,
    WHOLE,
    Column,
    filled,
)
from mir_plugin.reports.workbook.data import FormulaText

R = TypeVar("R")

INK, MUTED, ACCENT = "1F2937", "6B7280", "1E3A5F"
TITLE_FONT = Font(name="Calibri", size=16, bold=True, color=ACCENT)
TEXT_FONT = Font(name="Calibri", size=11, color=INK)
BOLD_FONT = Font(name="Calibri", size=11, bold=True, color=INK)
MUTED_FONT = Font(name="Calibri", size=10, color=MUTED)
HEADER_FONT = Font(name="Calibri", size=11, bold=True, color="FFFFFF")
WARNING_FONT = Font(name="Calibri", size=11, color="7C2D12")
HEADER_FILL = PatternFill("solid", start_color=ACCENT)
WARNING_FILL = PatternFill("solid", start_color="FEF3C7")
ERROR_FILL = PatternFill("solid", start_color="FEE2E2")
INPUT_FILL = PatternFill("solid", start_color="EFF6FF")
LINE = Border(bottom=Side(style="hair", color="D1D5DB"))
HEADER_ALIGNMENT = Alignment(horizontal="center", vertical="center", wrap_text=True)
TOP_WRAPPED = Alignment(horizontal="left", vertical="top", wrap_text=True, indent=1)
CENTERED = Alignment(horizontal="center")
INDENTED = Alignment(horizontal="left", indent=1)
LINE_HEIGHT = 15  # points


def put(cell: Cell, value: Any, number_format: str = TEXT, font: Font = TEXT_FONT) -> Cell:
    """Fill a cell with data. Text stays text: nothing that comes from outside can become a formula."""
    if isinstance(value, str):
        text = storable(value)
        cell.value = text
        cell.data_type = "s"
        cell.quotePrefix = starts_a_formula(text)
        cell.alignment = INDENTED
    elif value is not None:
        cell.value = value
        cell.number_format = number_format
        if number_format == WHOLE:
            cell.alignment = CENTERED
    cell.font = font
    return cell


class ColumnStyle:
    """The look of a column's cells, put together once for each kind: assembling it costs more than writing the cell."""

    def __init__(
        self, column: Column[Any], font: Font = TEXT_FONT, border: Border | None = None, *, beside_wrapped: bool = False
    ) -> None:
        self._column, self._font, self._border, self._beside_wrapped = column, font, border, beside_wrapped
        self._styles: dict[tuple[type, bool], StyleArray] = {}

    def put(self, cell: Cell, value: Any) -> None:
        """Fill a cell of the column as ``put`` does; None leaves it empty."""
        is_text = isinstance(value, str)
        kind = type(value), is_text and starts_a_formula(value)
        style = self._styles.get(kind)
        if style is None:
            self._styles[kind] = self._dressed(cell, value)._style
            return
        if is_text:
            cell.value = storable(value)
            cell.data_type = "s"
        elif value is not None:
            cell.value = value
        cell._style = copy(style)

    def _dressed(self, cell: Cell, value: Any) -> Cell:
        put(cell, value, self._column.number_format, self._font)
        if self._column.wraps:
            cell.alignment = TOP_WRAPPED
        elif self._beside_wrapped:  # on the first line of its row, as wrapped text is
            cell.alignment = cell.alignment + Alignment(vertical="top")
        if self._border is not None:
            cell.border = self._border
        return cell


def put_formula(
    cell: Cell,
    formula: str,
    value: float | None,
    number_format: str,
    font: Font = TEXT_FONT,
    border: Border | None = None,
) -> Cell:
    """Fill a cell with a formula of our own, and the value that it has now; None where that is an empty text."""
    cell.value = formula
    cell._value = FormulaText(formula, value)  # the setter makes plain text of it
    cell.number_format = number_format
    cell.font = font
    if border is not None:
        cell.border = border
    return cell


def write_table(sheet: Worksheet, columns: Sequence[Column[R]], rows: Sequence[R], top: int = 1) -> None:
    """Header in row ``top``, one row per record below; filtered, frozen, with the declared widths and formats."""
    write_header(sheet, columns, top)
    wrapped = [column for column in columns if column.wraps]
    styled = [(column, ColumnStyle(column, beside_wrapped=bool(wrapped))) for column in columns]
    for number, row in enumerate(rows, start=top + 1):
        for index, (column, style) in enumerate(styled, start=1):
            value = column.value(row)
            if value is not None and value != "":
                style.put(sheet.cell(number, index), value)
        if wrapped:
            n_lines = max(math.ceil(1.15 * len(str(column.value(row))) / column.width) for column in wrapped)
            sheet.row_dimensions[number].height = LINE_HEIGHT * max(n_lines, 1) + 3
    sheet.freeze_panes = sheet.cell(top + 1, 2)
    sheet.auto_filter.ref = f"A{top}:{get_column_letter(len(columns))}{max(top + len(rows), top + 1)}"


def write_header(sheet: Worksheet, columns: Sequence[Column[R]], top: int) -> None:
    """Headings and column widths."""
    sheet.sheet_format.defaultRowHeight = LINE_HEIGHT + 2
    sheet.sheet_format.customHeight = True
    for index, column in enumerate(columns, start=1):
        cell = put(sheet.cell(top, index), column.heading, font=HEADER_FONT)
        cell.fill, cell.alignment = HEADER_FILL, HEADER_ALIGNMENT
        sheet.column_dimensions[get_column_letter(index)].width = column.width
    sheet.row_dimensions[top].height = 32
    sheet.sheet_view.showGridLines = False
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True
    sheet.print_title_rows = f"{top}:{top}"


def write_scores(sheet: Worksheet, board: Board) -> None:
    """Every headline score that was found, the superseded ones too."""
    columns = filled(SCORE_COLUMNS, board.entries)
    write_table(sheet, columns or SCORE_COLUMNS, board.entries)


def write_runs(sheet: Worksheet, board: Board) -> None:
    """Provenance of every number."""
    write_table(sheet, filled(RUN_COLUMNS, board.runs) or RUN_COLUMNS, board.runs)


def write_problems(sheet: Worksheet, board: Board) -> None:
    """What could not be read, joined or compared."""
    write_table(sheet, PROBLEM_COLUMNS, board.problems)
    if not board.problems:
        put(sheet.cell(2, 1), "none", font=MUTED_FONT)
        return
    area = f"A2:A{len(board.problems) + 1}"
    for severity, fill in (("error", ERROR_FILL), ("warning", WARNING_FILL)):
        rule = FormulaRule(formula=[f'$A2="{severity}"'], fill=PatternFill("solid", bgColor=fill.start_color))
        sheet.conditional_formatting.add(area, rule)
