"""Writes a Board as an Excel workbook: Leaderboard, Scores, Correlation, Layers, Runs, Problems."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from openpyxl import Workbook
from openpyxl.drawing.spreadsheet_drawing import SpreadsheetDrawing
from openpyxl.worksheet._writer import WorksheetWriter
from openpyxl.worksheet.worksheet import Worksheet
from openpyxl.writer.excel import ExcelWriter
from tqdm import tqdm

from mir_plugin.files.atomic import replacing
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.workbook.correlation import write_correlation
from mir_plugin.reports.workbook.data import row_lines
from mir_plugin.reports.workbook.layers import write_layers
from mir_plugin.reports.workbook.leaderboard import write_leaderboard
from mir_plugin.reports.workbook.robustness import add_robustness_sheets
from mir_plugin.reports.workbook.sheets import write_problems, write_runs, write_scores

EMPTY_SHEET_DATA = re.compile(rb"<sheetData\s*/>|<sheetData\s*></sheetData>")
SHEETS: tuple[tuple[str, Callable[[Worksheet, Board], None]], ...] = (
    ("Leaderboard", write_leaderboard),
    ("Scores", write_scores),
    ("Correlation", write_correlation),
    ("Layers", write_layers),
    ("Runs", write_runs),
    ("Problems", write_problems),
)


def write_workbook(board: Board, path: Path) -> Path:
    """Write the workbook; a reader sees the old file or the whole new one.

    Averages are formulas over the row of weights, so changing a weight changes averages, chart and order of colours.
    """
    book = Workbook()
    book.remove(book.active)
    book.properties.title = board.title
    book.properties.creator = "mir-plugin"
    for name, write in tqdm(SHEETS, desc="workbook", unit="sheet", disable=None, leave=False):
        write(book.create_sheet(name), board)
    if board.robustness:
        add_robustness_sheets(book, board.robustness)
    with replacing(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        _Writer(book, archive).save()
    return path


class _Writer(ExcelWriter):  # type: ignore[misc]  # openpyxl has no types
    """openpyxl's, without its temporary file for each sheet, which a kill or a full disk would leave behind.

    Cells are written by ``sheet_data``: several times faster, and formulas with their values.
    """

    def write_worksheet(self, sheet: Worksheet) -> None:
        content = io.BytesIO()
        sheet._drawing = SpreadsheetDrawing()
        sheet._drawing.charts, sheet._drawing.images = sheet._charts, sheet._images
        writer = _EmptySheetWriter(sheet, content)
        writer.write()
        sheet._rels = writer._rels
        before, after = EMPTY_SHEET_DATA.split(content.getvalue())
        with self._archive.open(sheet.path[1:], "w") as file:
            file.write(before + b"<sheetData>")
            file.writelines(line.encode() for line in row_lines(sheet))
            file.write(b"</sheetData>" + after)
        self.manifest.append(sheet)


class _EmptySheetWriter(WorksheetWriter):  # type: ignore[misc]
    """Writes everything about a sheet but its rows."""

    def rows(self) -> list[object]:
        return []
