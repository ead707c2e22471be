"""The sheets Robustness and Sample number, in a workbook of their own and in the joint one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mir_plugin.reports.view.columns import (
    TEXT,
    THREE_PLACES,
    TWO_PLACES,
    WHOLE,
    Column,
    filled,
)
from mir_plugin.reports.workbook.sheets import (
    ERROR_FILL,
    MUTED_LOOK,
    PLAIN_LOOK,
    WARNING_FILL,
    Book,
    Sheet,
    write_table,
)
from mir_plugin.robustness.results import (
    STUDIES,
    ConditionResult,
    NumberRow,
    Robustness,
    Verdict,
)

CONDITIONS_SHEET, NUMBERS_SHEET, VERDICTS_SHEET = "Robustness", "Sample number", "Robustness verdict"
FOUR_PLACES = "0.0000"

CONDITION_COLUMNS: tuple[Column[ConditionResult], ...] = (
    Column("Study", lambda r: STUDIES.get(r.study, r.study), TEXT, 44),
    Column("Condition", lambda r: r.condition, TEXT, 40),
    Column("Checkpoint", lambda r: r.checkpoint, TEXT, 34),
    Column("MIR", lambda r: r.mir, FOUR_PLACES, 10),
    Column("MIR low", lambda r: r.low, FOUR_PLACES, 10),
    Column("MIR high", lambda r: r.high, FOUR_PLACES, 10),
    Column("MIR published", lambda r: r.mir_published, FOUR_PLACES, 15),
    Column("n samples", lambda r: r.n_samples, WHOLE, 11),
    Column("Vision tokens", lambda r: r.n_vision_tokens, "#,##0", 12),
    Column("Text tokens", lambda r: r.n_text_tokens, "#,##0", 12),
    Column("Result", lambda r: r.result, TEXT, 60),
)
NUMBER_COLUMNS: tuple[Column[NumberRow], ...] = (
    Column("Checkpoint", lambda r: r.checkpoint, TEXT, 34),
    Column("n samples", lambda r: r.n_samples, WHOLE, 11),
    Column("Choices", lambda r: r.n_choices, WHOLE, 10),
    Column("Mean MIR", lambda r: r.mean, FOUR_PLACES, 11),
    Column("Lowest", lambda r: r.low, FOUR_PLACES, 10),
    Column("Highest", lambda r: r.high, FOUR_PLACES, 10),
    Column("Standard deviation", lambda r: r.deviation, FOUR_PLACES, 12),
    Column("Mean less all samples", lambda r: r.bias, FOUR_PLACES, 14),
)
VERDICT_COLUMNS: tuple[Column[Verdict], ...] = (
    Column("Study", lambda v: v.question, TEXT, 48, wraps=True),
    Column("Outcome", lambda v: v.outcome, TEXT, 25),
    Column("Spread", lambda v: v.spread, THREE_PLACES, 10),
    Column("Difference between checkpoints", lambda v: v.difference, THREE_PLACES, 16),
    Column("Spread ÷ difference", lambda v: v.ratio, TWO_PLACES, 12),
    Column("Conditions", lambda v: v.n_orders or None, WHOLE, 12),
    Column("Same order", lambda v: v.n_same_order if v.n_orders else None, WHOLE, 12),
    Column("In words", lambda v: v.sentence, TEXT, 90, wraps=True),
)


def add_robustness_sheets(book: Book, reports: Sequence[Robustness]) -> None:
    """Append the sheets: the verdict of every study, every condition, and the numbers of samples if there are any."""
    _write_verdicts(book.sheet(VERDICTS_SHEET), reports)
    conditions = [row for report in reports for row in report.conditions]
    write_table(book.sheet(CONDITIONS_SHEET), filled(CONDITION_COLUMNS, conditions), conditions)
    numbers = [row for report in reports for row in report.number_rows()]
    if numbers:
        write_table(book.sheet(NUMBERS_SHEET), filled(NUMBER_COLUMNS, numbers), numbers)


def write_robustness_workbook(report: Robustness, path: Path) -> Path:
    """A workbook of these sheets alone; a reader sees the old file or the whole new one."""
    book = Book("Robustness of MIR")
    add_robustness_sheets(book, [report])
    return book.save(path)


def _write_verdicts(sheet: Sheet, reports: Sequence[Robustness]) -> None:
    rows = [verdict for report in reports for verdict in report.verdicts]
    columns = filled(VERDICT_COLUMNS, rows)
    write_table(sheet, columns, rows)
    outcome = [column.heading for column in columns].index("Outcome") + 1
    for number, row in enumerate(rows, start=2):
        if row.outcome in ("not robust", "unclear"):
            fill = ERROR_FILL if row.outcome == "not robust" else WARNING_FILL
            sheet.put(number, outcome, row.outcome, look={**PLAIN_LOOK, "valign": "top", **fill})
    remarks = [(STUDIES.get(study, study), reason) for report in reports for study, reason in report.skipped.items()]
    remarks += [("note", note) for report in reports for note in report.notes]
    for number, (what, text) in enumerate(remarks, start=len(rows) + 3):
        sheet.put(number, 1, what, look=MUTED_LOOK)
        sheet.put(number, 2, text)
