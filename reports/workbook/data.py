"""The rows of a sheet as XML, written as text: openpyxl builds an element for every cell, which takes much longer.

Formulas get the value that they have now, which openpyxl cannot write: programs that compute nothing (previews,
protected view, pandas) show it, all others compute it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from openpyxl.cell import Cell
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet


class FormulaText(str):
    """A formula that knows the value it has: a number, or None for an empty text."""

    value: float | None

    def __new__(cls, formula: str, value: float | None) -> FormulaText:
        """The text of the formula, with its value beside it."""
        text = super().__new__(cls, formula)
        text.value = value
        return text


def row_lines(sheet: Worksheet) -> Iterator[str]:
    """One ``row`` element after another, with the heights that were set."""
    rows: dict[int, list[Cell]] = {number: [] for number in sheet.row_dimensions}
    for (number, _), cell in sorted(sheet._cells.items()):
        rows.setdefault(number, []).append(cell)
    styles: dict[bytes, str] = {}
    letters = [get_column_letter(index) for index in range(1, sheet.max_column + 1)]
    for number in sorted(rows):
        dimension = dict(sheet.row_dimensions[number]) if number in sheet.row_dimensions else {}
        attributes = "".join(f" {name}={quoteattr(value)}" for name, value in dimension.items())
        cells = "".join(
            f'<c r="{letters[cell.column - 1]}{number}"{_style(cell, styles)}{_content(cell)}' for cell in rows[number]
        )
        yield f'<row r="{number}"{attributes}>{cells}</row>'


def _style(cell: Cell, known: dict[bytes, str]) -> str:
    if cell._style is None:
        return ""
    key = cell._style.tobytes()
    if key not in known:
        known[key] = f' s="{cell.style_id}"'
    return known[key]


def _content(cell: Cell) -> str:
    """What follows a cell's place and style. Raises TypeError for a kind of cell that reports do not write."""
    value, kind = cell.value, cell.data_type
    if value is None:
        return "/>"
    if kind == "s":
        space = ' xml:space="preserve"' if value != value.strip() or "\n" in value else ""
        return f' t="inlineStr"><is><t{space}>{escape(value)}</t></is></c>'
    if kind == "n":
        return f"><v>{value}</v></c>" if math.isfinite(value) else "/>"
    if kind == "f":
        text = escape(value[1:])
        computed: Any = value.value if isinstance(value, FormulaText) else None
        if computed is None:
            return f' t="str"><f>{text}</f><v></v></c>'
        return f"><f>{text}</f><v>{computed}</v></c>"
    raise TypeError(f"cell {cell.coordinate} is of kind {kind!r}")
