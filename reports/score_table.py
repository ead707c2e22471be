"""Reads plain tables of scores (CSV, TSV, XLSX): one row per checkpoint, one column per benchmark."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mir_plugin.reports.benchmarks import TABLE, find_column
from mir_plugin.reports.cell_text import without_apostrophe
from mir_plugin.reports.identity import checkpoint_ref
from mir_plugin.reports.records import UNSTATED, CheckpointRef, Comparability, Harvest, Measurement, Problem, Run, Score
from mir_plugin.reports.spreadsheet import read_grid

IDENTITY_HEADINGS = ("identity", "checkpoint", "pretrained", "model_path", "model", "name")
MIR_HEADINGS = ("mir", "mir_published", "mir_published_upper")
COMPARABILITY_HEADINGS = ("estimator", "samples", "protocol")
EMPTY_CELLS = frozenset({"", "-", "–", "—", "n/a", "na", "nan", "none", "null"})


def read_score_table(path: Path) -> Harvest:
    """Scores and MIR values of a table; numbers are taken to be on the benchmark's own scale (percent, MME in points).

    The checkpoint is named by the first column headed checkpoint, pretrained, model_path, model or name. Columns headed
    estimator, samples, protocol and date say what a MIR may be compared with. Empty cells and "N/A" are no scores;
    other text in a score's column is a problem.
    """
    source = str(path)
    try:
        grid = read_grid(path)
    except (OSError, ValueError) as error:
        problem = Problem("error", "unreadable", source, f"not read: {error}", "Save the table again as CSV or XLSX.")
        return Harvest(problems=(problem,))
    headings = [_text(cell) for cell in grid[0]] if grid else []
    lowered = [heading.casefold() for heading in headings]
    named_by = next((lowered.index(name) for name in IDENTITY_HEADINGS if name in lowered), None)
    if named_by is None:
        problem = Problem(
            "error",
            "unreadable",
            source,
            f"no column names the checkpoint; columns are: {', '.join(headings) or 'none'}",
            f"Head one column {' or '.join(IDENTITY_HEADINGS)}.",
        )
        return Harvest(problems=(problem,))
    kept, ignored = _score_columns(headings, grid[1:])
    harvests = [_read_row(source, number, kept, cells, named_by) for number, cells in enumerate(grid[1:], start=2)]
    notes = [Problem("note", "missing", source, f"columns without a number are not scores: {', '.join(ignored)}")]
    return Harvest.total([*harvests, Harvest(problems=tuple(notes if ignored else []))])


def _score_columns(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[str]]:
    """Headings with those of text columns blanked, and which these are. Columns that have a meaning stay."""
    known = {*IDENTITY_HEADINGS, *MIR_HEADINGS, *COMPARABILITY_HEADINGS, "date"}
    kept, ignored = [], []
    for index, heading in enumerate(headings):
        cells = [row[index] for row in rows if index < len(row) and _text(row[index]).casefold() not in EMPTY_CELLS]
        text_only = bool(cells) and all(_number(cell) is None for cell in cells)
        if heading and text_only and heading.casefold() not in known and find_column(heading) is None:
            ignored.append(heading)
            heading = ""
        kept.append(heading)
    return kept, ignored


def _read_row(source: str, number: int, headings: Sequence[str], cells: Sequence[Any], named_by: int) -> Harvest:
    row = {heading: cell for heading, cell in zip(headings, cells, strict=False) if heading}
    name = without_apostrophe(_text(cells[named_by])) if named_by < len(cells) else ""
    where = f"{source} row {number}"
    if not name:
        return Harvest(problems=(Problem("error", "unreadable", where, "names no checkpoint", "Fill in its name."),))
    facts = {heading.casefold(): _text(cell) for heading, cell in row.items()}
    checkpoint, date = checkpoint_ref(name), _date(facts.get("date", ""))
    scores, mir, problems = [], {}, []
    texts = {*IDENTITY_HEADINGS, *COMPARABILITY_HEADINGS, "date"}
    for heading, cell in row.items():
        if heading.casefold() in texts or _text(cell).casefold() in EMPTY_CELLS:
            continue
        value = _number(cell)
        if value is None:
            what = f"{heading} is {_text(cell)!r}, which is no number; the cell is left empty"
            problems.append(Problem("warning", "missing", where, what, "Correct the cell."))
        elif _field(heading) in MIR_HEADINGS:
            mir[_field(heading)] = value
        else:
            scores.append(Score(checkpoint, TABLE, heading, heading, value, date=date, run_id=source))
    run = Run(source, TABLE, name, source, date, tuple(score.task for score in scores))
    return Harvest(tuple(scores), _measurement(mir, facts, checkpoint, date, source), (run,), tuple(problems))


def _measurement(
    mir: Mapping[str, float], facts: Mapping[str, str], checkpoint: CheckpointRef, date: str, source: str
) -> tuple[Measurement, ...]:
    if "mir" not in mir:
        return ()
    stated = {name: facts[name] for name in COMPARABILITY_HEADINGS if facts.get(name)}
    comparability = Comparability(**{name: stated.get(name, UNSTATED) for name in COMPARABILITY_HEADINGS})
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
    if isinstance(cell, bool):
        return None
    try:
        number = float(cell.strip().removesuffix("%") if isinstance(cell, str) else cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _date(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).isoformat()
    except ValueError:
        return ""
