"""Reads the verdict of a ``sweep.json``; the measurements lie beside it as ``mir.json`` files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mir_plugin.files.strict_json import is_number, json_document
from mir_plugin.reports.read.records import ParsedSources, Problem, Verdict, VerdictRow, VerdictRun

SWEEP = "sweep.json"
RERUN = "Run `mir sweep` again; finished measurements are kept."


def read_sweep(path: Path) -> ParsedSources:
    """The verdict of a sweep, nothing if it has none yet; one problem if the file cannot be read."""
    try:
        data = json_document(path.read_text(encoding="utf-8"))
        if data.get("selection_impossible"):
            what = f"no verdict: {data['selection_impossible']}"
            return ParsedSources(problems=(Problem("warning", "incomparable", str(path), what, RERUN),))
        selection = data["selection"]
        return ParsedSources(verdicts=(_verdict(selection, str(path)),)) if selection else ParsedSources()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"not read: invalid sweep verdict ({error!r:.200})"
        return ParsedSources(problems=(Problem("warning", "unreadable", str(path), what, RERUN),))


def _verdict(selection: Mapping[str, Any], source: str) -> Verdict:
    tolerance = selection.get("tolerance", 0.0)
    rows = tuple(_row(one, tolerance) for one in selection["ranking"])
    if len({row.run for row in rows}) == 1:  # what it is compared with needs no column then
        rows = tuple(replace(row, against="") for row in rows)
    trends = {one["run"]: one for one in selection["runs"]}
    runs = []
    for run in dict.fromkeys(row.run for row in rows):
        settled = trends.get(run, {}).get("saturated_at")
        best = next(row for row in rows if row.run == run)
        told = trends.get(run, {})
        at = str(settled["name"]) if settled else ""
        along = str(told.get("sentence", "")) if len(trends) > 1 else ""
        runs.append(VerdictRun(run, best, str(told.get("trend", "")), at, along))
    return Verdict(
        sentence=str(selection["sentence"]),
        recommended=str(selection["recommended"]["name"]),
        reasons=tuple(map(str, selection["reasons"])),
        warnings=tuple(map(str, selection["warnings"])),
        rows=rows,
        runs=tuple(runs),
        source=source,
    )


def _row(ranked: Mapping[str, Any], tolerance: float) -> VerdictRow:
    behind = ranked.get("behind_best") or {}
    if not is_number(ranked["mir"]):
        raise ValueError(f"mir is {ranked['mir']!r}")
    return VerdictRow(
        name=str(ranked["name"]),
        run=str(ranked.get("run") or ""),
        step=ranked.get("step"),
        mir=float(ranked["mir"]),
        behind=behind.get("difference"),
        low=behind.get("low"),
        high=behind.get("high"),
        tied=ranked.get("tied_with_best"),
        within=ranked.get("within_tolerance"),
        tolerance=float(tolerance),
        against=str(ranked.get("compared_with") or ""),
    )
