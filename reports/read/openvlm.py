"""Reads ``OpenVLM.json``, the file behind the OpenVLM leaderboard: model → data set → its numbers, in percent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mir_plugin.files.strict_json import is_number, json_document
from mir_plugin.reports.read.benchmarks import TABLE
from mir_plugin.reports.read.identity import checkpoint_ref
from mir_plugin.reports.read.records import ParsedSources, Problem, Run, Score

FILE_NAME = "OpenVLM.json"
META = "META"
# Data set → its numbers that are headlines, by the heading that a table would give them; others have "Overall".
NAMED = {
    "MME": (("Perception", "MME-P"), ("Cognition", "MME-C")),
    "OCRBench": (("Final Score Norm", "OCRBench"),),
}


def read_openvlm(path: Path) -> ParsedSources:
    """The scores of all its models; one problem if the file cannot be read."""
    try:
        data = json_document(path.read_text(encoding="utf-8"))
        models = data["results"]
        scores = tuple(score for model, sets in models.items() for score in _scores(model, sets, str(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"not read: not the leaderboard's file ({error!r:.120})"
        return ParsedSources(problems=(Problem("error", "unreadable", str(path), what, "Download it again."),))
    runs = (
        Run(str(path), TABLE, model, str(path), tasks=tuple(sorted(set(sets) - {META})))
        for model, sets in models.items()
    )
    return ParsedSources(scores, runs=tuple(runs))


def _scores(model: str, data_sets: Mapping[str, Any], source: str) -> Iterator[Score]:
    reference = checkpoint_ref(model)
    for data_set, numbers in data_sets.items():
        if data_set == META:
            continue
        for field, heading in NAMED.get(data_set, (("Overall", data_set),)):
            value = numbers.get(field)
            if is_number(value):
                yield Score(reference, TABLE, heading, f"{data_set}: {field}", float(value), run_id=source)
