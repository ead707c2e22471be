"""Makes text from outside safe to show: a model may be called anything, ``=cmd|'/c calc'!A1`` included.

Tables, pages and terminals all take it from here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

N_REMEMBERED = 1024  # names and tasks come again in row after row
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
MAX_CELL_LENGTH = 32_767  # the limit of a spreadsheet's cell
# What XML cannot hold, what steers a terminal, and what turns the direction of the text behind it: after U+202E a MIR
# of 2.5 reads 5.2.
UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@lru_cache(maxsize=N_REMEMBERED)
def starts_a_formula(text: str) -> bool:
    """Whether a spreadsheet may take this text for a formula."""
    return text.lstrip(" \n").startswith(FORMULA_STARTS)


@lru_cache(maxsize=N_REMEMBERED)
def storable(text: str) -> str:
    """The text as XML, UTF-8 and a terminal can show it, cut to what fits in a cell."""
    text = UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= MAX_CELL_LENGTH else text[: MAX_CELL_LENGTH - 1] + "…"


def on_a_line(text: str) -> str:
    """The text on one line of a terminal.

    >>> on_a_line("name\\x1b]0;title\\x07 with\\na second line")
    'name\ufffd]0;title\ufffd with a second line'
    """
    return " ".join(storable(text).splitlines())


def accept_all_characters(*streams: Any) -> None:
    """Let streams of another encoding than UTF-8 write ``?`` for what they lack, instead of failing after the work."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):  # not a file object that took its place, as in tests
            stream.reconfigure(errors="replace")


def csv_table(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as a CSV document: texts as ``csv_text``, numbers in full, None as an empty cell."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerows([csv_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return output.getvalue()


def csv_text(text: str) -> str:
    """For CSV files: what could start a formula gets an apostrophe in front; line ends become spaces."""
    text = re.sub(r"[\r\n]+", " ", storable(text))
    return f"'{text}" if starts_a_formula(text) else text


def without_apostrophe(text: str) -> str:
    """Undo ``csv_text``."""
    return text[1:] if text.startswith("'") and starts_a_formula(text[1:]) else text


def markdown_text(text: str) -> str:
    """For a cell of a Markdown table: one line, nothing in it ends the cell, opens a tag or marks up."""
    text = " ".join(storable(text).split())
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl needs T1 fonts
    **{character: f"\\{character}" for character in "#$%&_"},
}


def latex_text(text: str) -> str:
    """For a cell of a LaTeX table."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(storable(text).split()))
