"""The table of what was done to it and what came out: written by `make test-full`, row by row from the cases held."""

from __future__ import annotations

from collections.abc import Iterable

PROPERTY = "fault"  # under this name a test reports its rows: (part, what was done, what came out)
# Sections of the table, in its order.
PARTS = {
    "checkpoints": "Checkpoints",
    "samples": "Samples",
    "numerics": "Numerics",
    "reports": "Host and report inputs",
    "processes": "Kills, full disks, several processes",
    "secrets": "Secrets",
    "soak": "Long use and repetition",
}
_LONGEST_CELL = 800

Row = tuple[str, str, str]


def page(rows: Iterable[Row]) -> str:
    """Markdown, one section a part."""
    sections: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, done, came_out in rows:
        sections[part].append(f"| {_cell(done)} | {_cell(came_out)} |")
    lines = ["# What was done to it, and what came out"]
    for part, found in sections.items():
        if found:
            lines += ["", f"## {PARTS[part]} ({len(found)})", "", "| what was done | what came out |", "|---|---|"]
            lines += sorted(found)
    return "\n".join([*lines, ""])


def printable(text: str) -> str:
    """Text with an escape sequence for whatever cannot be shown, or sent from a worker as UTF-8."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _cell(text: str) -> str:
    """Text of a Markdown table's cell: one line, nothing that a page would run or a table would break at."""
    text = printable(text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]} …")
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", "<br>")):
        text = text.replace(mark, shown)
    return text
