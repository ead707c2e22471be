"""Reads a table of cells out of CSV, TSV and XLSX files."""

from __future__ import annotations

import contextlib
import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openpyxl

SUFFIXES = frozenset({".csv", ".tsv", ".xlsx"})


def read_grid(path: Path) -> list[list[Any]]:
    """All rows that hold anything; cells are text, numbers or None. XLSX: the first sheet, values of formulas.

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
        return [sheet.title for sheet in book.worksheets[1:] if sheet.max_row != 1]


def _delimited(path: Path) -> list[list[Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise ValueError("not text")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        return [list(row) for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _xlsx(path: Path) -> list[list[Any]]:
    with _workbook(path) as book:
        return [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]


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
