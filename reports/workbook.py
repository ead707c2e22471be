"""Writes a Board as an Excel workbook: Leaderboard, Scores, Correlation, Layers, Runs, Problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openpyxl import Workbook
from openpyxl.worksheet.worksheet import Worksheet
from tqdm import tqdm

from mir_plugin.reports.board import Board
from mir_plugin.reports.sheet_correlation import write_correlation
from mir_plugin.reports.sheet_layers import write_layers
from mir_plugin.reports.sheet_leaderboard import write_leaderboard
from mir_plugin.reports.sheets import write_problems, write_runs, write_scores
from mir_plugin.results import replacing

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
    with replacing(path) as temporary:
        book.save(temporary)
    return path
