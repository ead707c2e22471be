"""Writes a Board as an Excel workbook: Leaderboard, Scores, Correlation, Layers, Runs, Problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from mir_plugin.reports.board.board import Board
from mir_plugin.reports.view.columns import (
    PROBLEM_COLUMNS,
    RUN_COLUMNS,
    SCORE_COLUMNS,
    VERDICT_COLUMNS,
    VERDICT_RUN_COLUMNS,
    Column,
    filled,
)
from mir_plugin.reports.workbook.correlation import write_correlation
from mir_plugin.reports.workbook.layers import write_layers
from mir_plugin.reports.workbook.leaderboard import write_leaderboard
from mir_plugin.reports.workbook.robustness import add_robustness_sheets
from mir_plugin.reports.workbook.sheets import (
    ERROR_FILL,
    MUTED_LOOK,
    TITLE_LOOK,
    WARNING_FILL,
    Book,
    Sheet,
    write_records,
    write_table,
)

R = TypeVar("R")


def write_workbook(board: Board, path: Path) -> Path:
    """Write the workbook; a reader sees the old file or the whole new one.

    Averages are formulas over the row of weights, so changing a weight changes averages, chart and order of colours.
    """
    book = Book(board.title)
    if board.verdicts:
        write_verdicts(book.sheet("Verdict"), board)
    for name, write in tqdm(SHEETS, desc="workbook", unit="sheet", disable=None, leave=False):
        write(book.sheet(name), board)
    if board.robustness:
        add_robustness_sheets(book, board.robustness)
    return book.save(path)


def write_verdicts(sheet: Sheet, board: Board) -> None:
    """What the sweeps among the sources concluded: the recommendation, every checkpoint, the best of each run."""
    row = 1
    for verdict in board.verdicts:
        sheet.put(row, 1, verdict.sentence, look={**TITLE_LOOK, "font_size": 13, "indent": 0})
        for text in (*verdict.reasons, *verdict.warnings):
            row += 1
            sheet.put(row, 1, text, look=MUTED_LOOK)
        for columns, rows in (
            (filled(VERDICT_COLUMNS, verdict.rows), verdict.rows),
            (_on_one_line(filled(VERDICT_RUN_COLUMNS, verdict.runs)), verdict.runs),
        ):
            write_records(sheet, columns, rows, top=row + 2)
            row += 2 + len(rows)
        row += 3
    for index, column in enumerate(VERDICT_COLUMNS):
        sheet.xlsx.set_column(index, index, max(column.width, 14))


def _on_one_line(columns: Sequence[Column[R]]) -> list[Column[R]]:
    """Without wrapping: the widths are those of the table above, and nothing stands behind the last column."""
    return [replace(column, wraps=False) for column in columns]


def write_scores(sheet: Sheet, board: Board) -> None:
    """Every headline score that was found, the superseded ones too."""
    columns = filled(SCORE_COLUMNS, board.entries)
    write_table(sheet, columns or SCORE_COLUMNS, board.entries)


def write_runs(sheet: Sheet, board: Board) -> None:
    """Provenance of every number."""
    write_table(sheet, filled(RUN_COLUMNS, board.runs) or RUN_COLUMNS, board.runs)


def write_problems(sheet: Sheet, board: Board) -> None:
    """What could not be read, joined or compared."""
    write_table(sheet, PROBLEM_COLUMNS, board.problems)
    if not board.problems:
        sheet.put(2, 1, "none", look=MUTED_LOOK)
        return
    area = f"A2:A{len(board.problems) + 1}"
    for severity, fill in (("error", ERROR_FILL), ("warning", WARNING_FILL)):
        rule = {"type": "formula", "criteria": f'=$A2="{severity}"', "format": sheet.book.rule_format(fill)}
        sheet.xlsx.conditional_format(area, rule)


SHEETS: tuple[tuple[str, Callable[[Sheet, Board], None]], ...] = (
    ("Leaderboard", write_leaderboard),
    ("Scores", write_scores),
    ("Correlation", write_correlation),
    ("Layers", write_layers),
    ("Runs", write_runs),
    ("Problems", write_problems),
)
