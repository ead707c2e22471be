"""A workbook under construction, its looks, and how a declared table becomes a sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import xlsxwriter
from xlsxwriter.chart import Chart
from xlsxwriter.format import Format
from xlsxwriter.utility import xl_col_to_name

from mir_plugin.files.atomic import replacing
from mir_plugin.files.outside_text import starts_a_formula, storable
from mir_plugin.reports.view.columns import TEXT, WHOLE, Column

R = TypeVar("R")
Look = Mapping[str, Any]  # properties of a cell, by XlsxWriter's names

INK, MUTED, ACCENT = "#1F2937", "#6B7280", "#1E3A5F"
TITLE_LOOK: Look = {"font_size": 16, "bold": True, "font_color": ACCENT}
PLAIN_LOOK: Look = {"font_color": INK}
BOLD_LOOK: Look = {"font_color": INK, "bold": True}
MUTED_LOOK: Look = {"font_color": MUTED, "font_size": 10}
HEADER_LOOK: Look = {
    "font_color": "#FFFFFF",
    "bold": True,
    "bg_color": ACCENT,
    "align": "center",
    "valign": "vcenter",
    "text_wrap": True,
    "indent": 0,
}
LINE_LOOK: Look = {"bottom": 7, "bottom_color": "#D1D5DB"}  # 7: hair
WRAPPED_LOOK: Look = {"align": "left", "valign": "top", "text_wrap": True, "indent": 1}
WARNING_FILL: Look = {"bg_color": "#FEF3C7"}
ERROR_FILL: Look = {"bg_color": "#FEE2E2"}
INPUT_FILL: Look = {"bg_color": "#EFF6FF"}
LINE_HEIGHT = 15  # points
# Of a chart's series.
COLOURS = (
    "#1F77B4", "#D62728", "#2CA02C", "#9467BD", "#FF7F0E", "#17BECF", "#8C564B", "#E377C2", "#7F7F7F", "#BCBD22",
)  # fmt: skip
GRID = {"visible": True, "line": {"color": "#E5E7EB", "width": 0.75}}


class Book:
    """A workbook in memory; every look becomes one format, however many cells share it."""

    def __init__(self, title: str = "") -> None:
        self._content = io.BytesIO()
        # In memory: else XlsxWriter keeps a temporary file for each sheet, which a kill would leave behind.
        self._file = xlsxwriter.Workbook(self._content, {"in_memory": True})
        self._file.set_properties({"title": storable(title), "author": "mir-plugin"})
        self._formats: dict[tuple[tuple[str, Any], ...], Format] = {}

    def sheet(self, name: str) -> Sheet:
        """Append an empty sheet."""
        sheet = self._file.add_worksheet(name)
        sheet.hide_gridlines(2)  # on the screen, too
        return Sheet(self, name, sheet)

    def chart(self, options: Mapping[str, str]) -> Chart:
        """A chart to be put on a sheet."""
        return self._file.add_chart(dict(options))

    def format(self, look: Look) -> Format:
        """The one format of a look."""
        key = tuple(sorted(look.items()))
        if key not in self._formats:
            self._formats[key] = self._file.add_format({"font_name": "Calibri", **look})
        return self._formats[key]

    def rule_format(self, look: Look) -> Format:
        """The format that a conditional format lays over a cell: only what it changes."""
        return self._file.add_format(dict(look))

    def save(self, path: Path) -> Path:
        """Write the file; a reader sees the old one or the whole new one."""
        self._file.close()
        with replacing(path) as temporary:
            temporary.write_bytes(self._content.getbuffer())
        return path


class Sheet:
    """One sheet. Rows and columns count from 1, as in the spreadsheet's own references."""

    def __init__(self, book: Book, name: str, written: xlsxwriter.worksheet.Worksheet) -> None:
        self.book, self.name, self.xlsx = book, name, written

    def put(self, row: int, column: int, value: Any, number_format: str = TEXT, look: Look = PLAIN_LOOK) -> None:
        """Fill a cell with data; None leaves it empty, with its look."""
        self.put_formatted(row, column, value, self.book.format(cell_look(value, number_format, look)))

    def put_formatted(self, row: int, column: int, value: Any, cell_format: Format) -> None:
        """The same with a finished format. Text stays text: nothing that comes from outside can become a formula."""
        if isinstance(value, str):
            text = storable(value)
            if text.startswith("<r>"):  # XlsxWriter would take <r>…</r> for its own mark-up
                plain = self.book.format({})
                self.xlsx.write_rich_string(row - 1, column - 1, plain, "<", plain, text[1:], cell_format)
            else:
                self.xlsx.write_string(row - 1, column - 1, text, cell_format)
        elif value is None or not math.isfinite(value):
            self.xlsx.write_blank(row - 1, column - 1, None, cell_format)
        else:
            self.xlsx.write_number(row - 1, column - 1, value, cell_format)

    def put_formula(
        self, row: int, column: int, formula: str, value: float | None, number_format: str, look: Look = PLAIN_LOOK
    ) -> None:
        """A formula of our own with the value that it has now, None for an empty text.

        Programs that compute nothing (previews, protected view, pandas) show the value.
        """
        cell_format = self.book.format({**look, "num_format": number_format})
        self.xlsx.write_formula(row - 1, column - 1, formula, cell_format, "" if value is None else value)


def cell_look(value: Any, number_format: str, look: Look) -> Look:
    """A look, with what the kind of the value asks for: text indented, whole numbers centred, formulas quoted."""
    if isinstance(value, str):
        quoted = {"quote_prefix": True} if starts_a_formula(storable(value)) else {}
        return {"align": "left", "indent": 1, **look, **quoted}
    if value is None:
        return look
    return {**({"align": "center"} if number_format == WHOLE else {}), **look, "num_format": number_format}


class ColumnWriter:
    """Writes the cells of one column; looks up a format once for each kind of value, which is most of the work."""

    def __init__(self, sheet: Sheet, index: int, column: Column[Any], look: Look = PLAIN_LOOK) -> None:
        self._sheet, self._index, self._number_format = sheet, index, column.number_format
        self._look = {**look, **WRAPPED_LOOK} if column.wraps else look
        self._formats: dict[tuple[type, bool], Format] = {}

    def put(self, row: int, value: Any) -> None:
        """Fill the column's cell in a row; None leaves it empty, with its look."""
        kind = type(value), isinstance(value, str) and starts_a_formula(value)
        cell_format = self._formats.get(kind)
        if cell_format is None:
            cell_format = self._sheet.book.format(cell_look(value, self._number_format, self._look))
            self._formats[kind] = cell_format
        self._sheet.put_formatted(row, self._index, value, cell_format)


def column_letter(index: int) -> str:
    """Letters of the index-th column, from 1."""
    letters: str = xl_col_to_name(index - 1)
    return letters


def write_table(sheet: Sheet, columns: Sequence[Column[R]], rows: Sequence[R], top: int = 1) -> None:
    """Header in row ``top``, one row per record below; filtered, frozen, with the declared widths and formats."""
    write_records(sheet, columns, rows, top)
    sheet.xlsx.print_area(0, 0, max(top - 1 + len(rows), top), len(columns) - 1)  # not what charts are drawn from
    sheet.xlsx.freeze_panes(top, 1)
    sheet.xlsx.autofilter(top - 1, 0, max(top - 1 + len(rows), top), len(columns) - 1)


def write_records(sheet: Sheet, columns: Sequence[Column[Any]], rows: Sequence[Any], top: int) -> None:
    """Header and rows alone: a sheet can hold several such tables."""
    write_header(sheet, columns, top)
    wrapped = [column for column in columns if column.wraps]
    look = {**PLAIN_LOOK, "valign": "top"} if wrapped else PLAIN_LOOK  # on the first line of its row
    writers = [(column, ColumnWriter(sheet, index, column, look)) for index, column in enumerate(columns, start=1)]
    for number, row in enumerate(rows, start=top + 1):
        for column, writer in writers:
            value = column.value(row)
            if value is not None and value != "":
                writer.put(number, value)
        if wrapped:
            n_lines = max(math.ceil(1.15 * len(str(column.value(row))) / column.width) for column in wrapped)
            sheet.xlsx.set_row(number - 1, LINE_HEIGHT * max(n_lines, 1) + 3)


def write_header(sheet: Sheet, columns: Sequence[Column[R]], top: int) -> None:
    """Headings and column widths, and how the sheet is printed."""
    sheet.xlsx.set_default_row(LINE_HEIGHT + 2)
    for index, column in enumerate(columns, start=1):
        sheet.put(top, index, column.heading, look=HEADER_LOOK)
        sheet.xlsx.set_column(index - 1, index - 1, column.width)
    sheet.xlsx.set_row(top - 1, 32)
    sheet.xlsx.set_landscape()
    sheet.xlsx.fit_to_pages(1, 0)
    sheet.xlsx.repeat_rows(top - 1)
