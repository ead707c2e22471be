"""Reads plain tables of scores (CSV, TSV, XLSX): one row per checkpoint, one column per benchmark."""

from __future__ import annotations

import datetime
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mir_plugin.files.outside_text import without_apostrophe
from mir_plugin.reports.read.benchmarks import TABLE, find_column
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.identity import checkpoint_ref
from mir_plugin.reports.read.records import (
    COMPARABILITY_PARTS,
    UNSTATED,
    CheckpointRef,
    Comparability,
    Measurement,
    ParsedSources,
    Problem,
    Run,
    Score,
)
from mir_plugin.reports.read.spreadsheet import ends_with_a_line, further_sheets, read_grid

IDENTITY_HEADINGS = ("identity", "checkpoint", "pretrained", "model_path", "model", "name")
MIR_HEADINGS = ("mir", "mir_published", "mir_published_upper")
LARGEST_LOGARITHM = sys.float_info.max_10_exp  # a MIR beyond it would be that of distances that no number can hold
# Columns of our own tables that are neither scores nor MIR.
NOT_SCORES = frozenset(
    {
        "rank",
        "run",
        "group",
        "step",
        "cohort",
        "scores_of",
        "mir_±",
        "mir_low",
        "mir_high",
        "mir_standard_error",
        "n_samples",
    }
)
MARKUP = "*` "  # of Markdown
IN_PERCENT = " (%)"  # behind the field of a score whose cell has a percent sign
WITH_COMMAS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+\.\d+")  # 1,510.7; without the point, 1,510 may be 1.51
UNCERTAINTY = re.compile(r"\s*(?:±|\+/-).*")
SUMMARY = re.compile(
    r"(?:[Δ∆].*|(?:delta|avg|average|mean|median|std|min|max|diff|difference|gain|improvement)\.?"
    r"(?:\s+(?:of|over|to|vs\.?)\s.*)?)",
    re.IGNORECASE,
)
EMPTY_CELLS = frozenset({"", "-", "–", "—", "n/a", "na", "nan", "none", "null"})


def read_score_table(path: Path) -> ParsedSources:
    """Scores and MIR values of a table, as they are written: on which scale a column is, ``board.scales`` decides.

    The checkpoint is named by the column headed identity, or else checkpoint, pretrained, model_path, model or name.
    Columns headed estimator, samples, protocol and date say what a MIR may be compared with. Empty cells and "N/A" are
    no scores; other text in a score's column is a problem. Percent signs, bold marks, thousands separators before a
    decimal point and "± 0.2" are ignored.
    """
    source = str(path)
    try:
        grid, unread = read_grid(path), further_sheets(path)
    except (OSError, ValueError) as error:
        problem = Problem("error", "unreadable", source, f"not read: {error}", "Save the table again as CSV or XLSX.")
        return ParsedSources(problems=(problem,))
    headings = [_text(cell) for cell in grid[0]] if grid else []
    lowered = [heading.casefold() for heading in headings]
    named_by = next((lowered.index(name) for name in IDENTITY_HEADINGS if name in lowered), None)
    if named_by is None:
        problem = Problem(
            "error",
            "unreadable",
            source,
            f"no column names the checkpoint; columns are: {', '.join(headings) or 'none'}",
            f"Name one column {' or '.join(IDENTITY_HEADINGS)}.",
        )
        return ParsedSources(problems=(problem,))
    kept, ignored = _score_columns(headings, grid[1:])
    kept, problems = _without_doubles(kept, source)
    rows: list[tuple[int, Sequence[Any]]] = list(enumerate(grid[1:], start=2))
    rows, summaries = _without_summaries(rows, named_by)
    if summaries:
        what = f"{len(summaries)} rows sum up or compare others, and are no checkpoints: {', '.join(summaries)}"
        problems.append(Problem("note", "missing", source, what, "Not read. Rename a checkpoint that is called so."))
    contradictory, contradictions = _contradictory_rows(rows, kept, named_by, source)
    problems += contradictions
    parts = [_read_row(source, n, kept, cells, named_by) for n, cells in rows if n not in contradictory]
    if ignored:
        what = f"ignored columns without numbers: {', '.join(ignored)}"
        problems.append(Problem("note", "missing", source, what))
    if unread:
        what = f"only the first sheet is read; ignored: {', '.join(unread)}"
        problems.append(Problem("note", "missing", source, what, "If they have scores, save each sheet as a file."))
    if not rows:
        problems.append(Problem("warning", "missing", source, "it has headings but no rows", "Add rows."))
    if not ends_with_a_line(path):
        what = "the last line has no line end; if the file was cut short, the last number is wrong"
        problems.append(Problem("note", "unreadable", source, what, "Compare the last row with its source."))
    return ParsedSources.total([*parts, ParsedSources(problems=tuple(problems))])


def _without_summaries(
    rows: Sequence[tuple[int, Sequence[Any]]], named_by: int
) -> tuple[list[tuple[int, Sequence[Any]]], list[str]]:
    """Rows of checkpoints, and the names of rows such as "Average" and "Δ to baseline"."""
    names = {number: _text(cells[named_by]) if named_by < len(cells) else "" for number, cells in rows}
    kept = [(number, cells) for number, cells in rows if not SUMMARY.fullmatch(names[number].strip(MARKUP))]
    numbers = {number for number, _ in kept}
    return kept, [name for number, name in names.items() if number not in numbers]


def _without_doubles(headings: Sequence[str], source: str) -> tuple[list[str], list[Problem]]:
    """Headings with duplicates blanked, because it is unknown which column counts."""
    counts = Counter(_field(heading) for heading in headings if heading)
    twice = [name for name, count in counts.items() if count > 1]
    problems = [
        Problem("error", "unreadable", source, f"{counts[name]} columns are named {name!r}", "Not read. Keep one.")
        for name in twice
    ]
    return ["" if _field(heading) in twice else heading for heading in headings], problems


def _contradictory_rows(
    rows: Sequence[tuple[int, Sequence[Any]]], headings: Sequence[str], named_by: int, source: str
) -> tuple[set[int], list[Problem]]:
    """Numbers of rows that give a checkpoint, on one date, two values in one column: it is unknown which counts."""
    lowered = [heading.casefold() for heading in headings]
    date_at = lowered.index("date") if "date" in lowered else None
    told: dict[tuple[Any, ...], tuple[int, Any]] = {}
    contradictory: set[int] = set()
    problems = []
    for number, cells in rows:
        texts = [_text(cell) for cell in cells]
        if named_by >= len(texts) or not texts[named_by]:
            continue
        keys = checkpoint_ref(without_apostrophe(texts[named_by])).keys
        date = texts[date_at] if date_at is not None and date_at < len(texts) else ""
        # Not strict: a row may end early, and cells beyond the last heading are reported when the row is read.
        for heading, cell, text in zip(headings, cells, texts, strict=False):
            if not heading or heading.casefold() in IDENTITY_HEADINGS or text.casefold() in EMPTY_CELLS:
                continue
            value = text if _number(cell) is None else _number(cell)
            first, earlier = told.setdefault((keys, date, heading), (number, value))
            if earlier != value:
                contradictory |= {first, number}
                what = f"rows {first} and {number} both name {texts[named_by]}, with {heading} {earlier} and {value}"
                remedy = "Neither is read. Keep one, or add a date column to tell them apart."
                problems.append(Problem("error", "unreadable", source, what, remedy))
    return contradictory, problems


def _score_columns(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[str]]:
    """Headings with those of text columns blanked, and which these are. Columns that have a meaning stay."""
    known = {*IDENTITY_HEADINGS, *MIR_HEADINGS, *COMPARABILITY_PARTS, "date"}
    headings = ["" if _field(heading) in NOT_SCORES else heading for heading in headings]
    kept, ignored = [], []
    for index, heading in enumerate(headings):
        cells = [row[index] for row in rows if index < len(row) and _text(row[index]).casefold() not in EMPTY_CELLS]
        text_only = bool(cells) and all(_number(cell) is None for cell in cells)
        if heading and text_only and heading.casefold() not in known and find_column(heading, BENCHMARKS) is None:
            ignored.append(heading)
            heading = ""
        kept.append(heading)
    return kept, ignored


def _read_row(source: str, number: int, headings: Sequence[str], cells: Sequence[Any], named_by: int) -> ParsedSources:
    # Not strict: a row may end early; cells beyond the last heading are reported below.
    row = {heading: cell for heading, cell in zip(headings, cells, strict=False) if heading}
    name = without_apostrophe(_text(cells[named_by])) if named_by < len(cells) else ""
    where = f"{source} row {number}"
    surplus = [_text(cell) for cell in cells[len(headings) :] if _text(cell)]
    if surplus:
        what = f"has more cells than headings: {', '.join(surplus)}; perhaps an unquoted comma in a cell"
        return ParsedSources(problems=(Problem("error", "unreadable", where, what, "Not read. Correct the row."),))
    if not name:
        return ParsedSources(
            problems=(Problem("error", "unreadable", where, "names no checkpoint", "Fill in its name."),)
        )
    facts = {heading.casefold(): _text(cell) for heading, cell in row.items()}
    checkpoint, date = checkpoint_ref(name), _date(facts.get("date", ""))
    scores, mir, problems = [], {}, []
    texts = {*IDENTITY_HEADINGS, *COMPARABILITY_PARTS, "date"}
    for heading, cell in row.items():
        if heading.casefold() in texts or _text(cell).casefold() in EMPTY_CELLS:
            continue
        value = _number(cell)
        if value is None or (_field(heading) in MIR_HEADINGS and abs(value) > LARGEST_LOGARITHM):
            what = f"{heading} is {_text(cell)!r}, not a valid value; the cell is ignored"
            problems.append(Problem("warning", "missing", where, what, "Correct the cell."))
        elif _field(heading) in MIR_HEADINGS:
            mir[_field(heading)] = value
        else:
            field = heading + (IN_PERCENT if _text(cell).strip(MARKUP).endswith("%") else "")
            scores.append(Score(checkpoint, TABLE, heading, field, value, date=date, run_id=source))
    if not scores and not mir and not problems:
        problems.append(
            Problem("warning", "missing", where, f"{name} has no numbers", "Fill in its scores, or remove the row.")
        )
    run = Run(source, TABLE, name, source, date, tuple(score.task for score in scores))
    return ParsedSources(tuple(scores), _measurement(mir, facts, checkpoint, date, source), (run,), tuple(problems))


def _measurement(
    mir: Mapping[str, float], facts: Mapping[str, str], checkpoint: CheckpointRef, date: str, source: str
) -> tuple[Measurement, ...]:
    if "mir" not in mir:
        return ()
    stated = {name: facts[name] for name in COMPARABILITY_PARTS if facts.get(name)}
    comparability = Comparability(**{name: stated.get(name, UNSTATED) for name in COMPARABILITY_PARTS})
    return (
        Measurement(
            checkpoint,
            mir["mir"],
            comparability,
            mir.get("mir_published"),
            mir.get("mir_published_upper"),
            date=date,
            run_id=source,
        ),
    )


def _field(heading: str) -> str:
    """``MIR published`` and ``mir_published`` are one column."""
    return heading.casefold().replace(" ", "_")


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, (datetime.datetime, datetime.date)):
        return cell.isoformat()
    return str(cell).strip()


def _number(cell: Any) -> float | None:
    """
    >>> _number("33.1%"), _number("**65.0**"), _number("67.1 ± 0.2"), _number("1,510.7"), _number("1,5"), _number("3_4")
    (33.1, 65.0, 67.1, 1510.7, None, None)
    """
    if isinstance(cell, bool):
        return None
    if isinstance(cell, str):
        if "_" in cell:  # Python reads 3_4 as 34
            return None
        cell = UNCERTAINTY.sub("", cell.strip().strip(MARKUP)).removesuffix("%")
        if WITH_COMMAS.fullmatch(cell):
            cell = cell.replace(",", "")
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _date(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).isoformat()
    except ValueError:
        return ""
