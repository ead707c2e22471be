"""Reads a table of cells out of CSV, TSV and XLSX files."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openpyxl

DECIMAL_COMMA = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+),(?:\d{1,2}|\d{4,})%?")  # 1,512 may have thousands
COMMA_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?%?")
SUFFIXES = frozenset({".csv", ".tsv", ".xlsx"})


def read_grid(path: Path) -> list[list[Any]]:
    """All rows that hold anything; cells are text, numbers or None.

    XLSX: the first sheet that is not hidden, values of formulas; a number in a cell formatted as percent becomes what
    it looks like, ``57.5%``. In tables separated by semicolons or tabs a decimal comma is read as such.

    Raises:
        OSError, ValueError: if the file cannot be read.
    """
    rows = _xlsx(path) if path.suffix.lower() == ".xlsx" else _delimited(path)
    return [row for row in rows if any(cell not in (None, "") for cell in row)]


def ends_with_a_line(path: Path) -> bool:
    """Whether a text table ends with a line end; true of XLSX files."""
    content = path.read_bytes()[-1:]
    return path.suffix.lower() == ".xlsx" or content in (b"", b"\n", b"\r")


def further_sheets(path: Path) -> list[str]:
    """Names of a workbook's non-empty sheets after the first; none for other files.

    Raises:
        OSError, ValueError: if the file cannot be read.
    """
    if path.suffix.lower() != ".xlsx":
        return []
    with _workbook(path) as book:
        first = _first_visible(book)
        return [sheet.title for sheet in book.worksheets if sheet is not first and sheet.max_row != 1]


def _delimited(path: Path) -> list[list[Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise ValueError("not text")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [list(row) for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if delimiter != "," and any(DECIMAL_COMMA.fullmatch(cell.strip()) for row in rows[1:] for cell in row):
        return [rows[0], *([_with_decimal_point(cell) for cell in row] for row in rows[1:])]
    return rows


def _with_decimal_point(cell: str) -> str:
    """
    >>> _with_decimal_point("57,5"), _with_decimal_point("1.510,7"), _with_decimal_point("a,b")
    ('57.5', '1510.7', 'a,b')
    """
    return cell.replace(".", "").replace(",", ".") if COMMA_NUMBER.fullmatch(cell.strip()) else cell


def _xlsx(path: Path) -> list[list[Any]]:
    with _workbook(path) as book:
        return [[_shown(cell) for cell in row] for row in _first_visible(book).iter_rows()]


def _first_visible(book: openpyxl.Workbook) -> Any:
    return next((sheet for sheet in book.worksheets if sheet.sheet_state == "visible"), book.worksheets[0])


def _shown(cell: Any) -> Any:
    """The value; a fraction that is shown as percent as text with the sign, which says on which scale it is."""
    is_number = isinstance(cell.value, (int, float)) and not isinstance(cell.value, bool)
    return f"{cell.value * 100:.12g}%" if is_number and "%" in (cell.number_format or "") else cell.value


@contextlib.contextmanager
def _workbook(path: Path) -> Iterator[openpyxl.Workbook]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # openpyxl remarks on styles and validations it does not keep
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            yield book
        finally:
            book.close()
    except OSError:
        raise
    # What openpyxl and the libraries below it raise for damaged bytes is no closed list.
    except Exception as error:
        raise ValueError(f"not a valid XLSX workbook ({type(error).__name__}: {error})") from error
