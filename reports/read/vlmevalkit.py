"""Reads the output trees of VLMEvalKit, in all three layouts it has had; never imports it (that takes a minute).

``<tree>/<model>/T<date>-<time>/`` since April 2026, ``T<date>_G<commit>/`` before, and flat ``<tree>/<model>/`` before
November 2024. Links in the model folder repeat what lies in run folders, so only real files count there.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mir_plugin.files.strict_json import json_document
from mir_plugin.reports.read.benchmarks import VLMEVALKIT
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.identity import vlmevalkit_ref
from mir_plugin.reports.read.records import (
    ParsedSources,
    Problem,
    Run,
    Score,
)
from mir_plugin.reports.read.spreadsheet import read_grid

RUN_DIR = re.compile(r"T(\d{8})(?:-(\d{6})|_G[0-9a-f]{8})$")
SCORE_FILE = re.compile(r"(?P<rest>.+)_(?:acc|score)\.(?:csv|tsv|xlsx|json)$")
ANSWER_SUFFIXES = frozenset({".xlsx", ".tsv", ".json", ".pkl"})
LABEL_COLUMNS = ("split", "category", "task&skill")
NO_NUMBERS = frozenset({"", "nan", "inf", "-inf", "none", "n/a"})
# What a judge's name starts with in file names: <data set>_<judge>_score.csv.
JUDGE = re.compile(
    r"_(?:chat)?(?:gpt|exact_matching|o\d|openai|claude|gemini|gemma|qwen|llama|deepseek|glm|kimi|internlm|mistral|"
    r"compassjudger|xfinder|doubao|judge)",
    re.IGNORECASE,
)
MIR_DATA_SET = "MIR"
DECLARED_TASKS = frozenset(
    task for benchmark in BENCHMARKS for line in benchmark.headlines if line.host == VLMEVALKIT for task in line.tasks
)
LINK_TEXT_BYTES = 4096  # a link that was copied as a text file holds one path


@dataclass(frozen=True)
class _RunFolder:
    folder: Path
    model: str
    date: str
    status: Mapping[str, Any]

    @property
    def data_sets(self) -> Mapping[str, Any]:
        listed = self.status.get("datasets")
        return listed if isinstance(listed, dict) else {}


def is_model_dir(folder: Path) -> bool:
    """Whether VLMEvalKit wrote this folder for one model."""
    children = list(folder.iterdir())
    if any(RUN_DIR.match(child.name) and child.is_dir() for child in children):
        return True
    prefix = f"{folder.name}_"
    return any(child.name.startswith(prefix) and SCORE_FILE.match(child.name) for child in children)


def loose_models(folder: Path) -> list[str]:
    """The models whose score files lie here although the folder is none of a model: copied, or renamed.

    VLMEvalKit puts the model's name in front of a file's; what is in front of a data set that it knows is one.
    """
    found = set()
    for child in folder.iterdir():
        match = SCORE_FILE.match(child.name)
        parts = match["rest"].split("_") if match else []
        for at in range(1, len(parts)):
            rest = "_".join(parts[at:])
            if data_set_name(rest, DECLARED_TASKS) in DECLARED_TASKS:
                found.add("_".join(parts[:at]))
                break
    return sorted(found)


def read_model_dir(folder: Path, model: str = "") -> ParsedSources:
    """All scores of one model: every run folder, and the files of the flat layout.

    Args:
        model: whose files to read; without it the folder is named after it.
    """
    model = model or folder.name
    run_dirs = sorted(child for child in folder.iterdir() if RUN_DIR.match(child.name) and child.is_dir())
    parsed = ParsedSources.total(_read_run(run_dir, model) for run_dir in [*run_dirs, folder])
    unscored = [problem for problem in parsed.problems if problem.kind == "missing"]
    scored = {score.task for score in parsed.scores}
    kept = [problem for problem in parsed.problems if problem not in unscored]
    kept += {p.where: p for p in unscored if p.where.rsplit(" ", 1)[-1] not in scored}.values()
    return ParsedSources(parsed.scores, parsed.measurements, parsed.runs, tuple(kept))


def _read_run(folder: Path, model: str) -> ParsedSources:
    status, problems = _read_status(folder / "status.json")
    run = _RunFolder(folder, model, _date_of(folder.name), status)
    scores: list[Score] = []
    files = [path for path in sorted(folder.glob("*")) if path.is_file() and not is_link(path)]
    answered = {_strip(path.stem, model) for path in files if path.suffix in ANSWER_SUFFIXES}
    judged = _judges(files, run, answered)
    for path in files:
        match = SCORE_FILE.match(_strip(path.name, model))
        if not path.name.startswith(f"{model}_") or not match:
            continue
        data_set = data_set_name(match["rest"], {*run.data_sets, *DECLARED_TASKS}, answered)
        if data_set == MIR_DATA_SET:
            continue  # the full result lies beside it as mir.json
        try:
            values = dict(score_values(path))
        except (OSError, ValueError) as error:
            problems.append(
                Problem("error", "unreadable", str(path), f"not read: {error}", "Score this data set again.")
            )
            continue
        if not values:
            problems.append(Problem("error", "unreadable", str(path), "has no numbers", "Score this data set again."))
        judges = judged.get(data_set, [])
        shown = data_set if len(judges) < 2 else f"{data_set} ({_judge(match['rest'], data_set)})"
        scores += [_score(run, shown, metric, value) for metric, value in values.items()]
    for data_set, judges in judged.items():
        if len(judges) > 1:
            what = f"scored by {len(judges)} judges ({', '.join(judges)}): shown apart, as {data_set} by none of them"
            remedy = "Keep one judge's score file to have it read as the benchmark."
            problems.append(Problem("warning", "incomparable", f"{run.model} {data_set}", what, remedy))
    scored = {score.task for score in scores} | {name for name, judges in judged.items() if len(judges) > 1}
    problems += [
        _not_scored(run, name, entry)
        for name, entry in run.data_sets.items()
        if name not in scored and name != MIR_DATA_SET and isinstance(entry, dict)
    ]
    if not scores and not problems and not run.data_sets:
        return ParsedSources()
    commit = status.get("commit")
    provenance = Run(
        run_id=str(folder),
        host=VLMEVALKIT,
        checkpoint=model,
        source=str(folder),
        date=run.date,
        tasks=tuple(sorted(scored)),
        versions={"vlmevalkit": str(commit)} if commit else {},
    )
    return ParsedSources(tuple(scores), (), (provenance,), tuple(problems))


def _judges(files: Iterable[Path], run: _RunFolder, answered: Iterable[str]) -> dict[str, list[str]]:
    """Data set → the judges that scored it; ``none`` for a score file that names none."""
    found: dict[str, list[str]] = {}
    for path in files:
        match = SCORE_FILE.match(_strip(path.name, run.model))
        if path.name.startswith(f"{run.model}_") and match:
            data_set = data_set_name(match["rest"], {*run.data_sets, *DECLARED_TASKS}, answered)
            judge = _judge(match["rest"], data_set)
            if judge not in found.setdefault(data_set, []):
                found[data_set].append(judge)
    return found


def _judge(rest: str, data_set: str) -> str:
    return rest[len(data_set) :].strip("_") or "none"


def _score(run: _RunFolder, data_set: str, metric: str, value: float) -> Score:
    entry = run.data_sets.get(data_set)
    updated = entry.get("updated_at") if isinstance(entry, dict) else None
    return Score(
        checkpoint=vlmevalkit_ref(run.model),
        host=VLMEVALKIT,
        task=data_set,
        metric=metric,
        value=value,
        date=str(updated or run.date)[:19],
        run_id=str(run.folder),
    )


def _not_scored(run: _RunFolder, data_set: str, entry: Mapping[str, Any]) -> Problem:
    """``status: done`` also means that the scoring failed; only a score file or metrics mean success."""
    reason = str(entry.get("error_message") or "").strip().split("\n", 1)[0]
    what = "answered but not scored" + (f": {reason}" if reason else " (no reason recorded)")
    return Problem("warning", "missing", f"{run.model} {data_set}", what, "Score it with `--mode eval --reuse`.")


def data_set_name(rest: str, known: Iterable[str], answered: Iterable[str] = ()) -> str:
    """Data set of a score file's name without model and suffix; judges put their own name in between.

    Args:
        known: data sets that are surely ones.
        answered: names of the files of answers; a judge's file beside them is named after the judge, too.

    >>> data_set_name("MMVet_gpt-4-turbo", ["MMVet"]), data_set_name("Mine_gpt-4o", [], ["Mine", "Mine_gpt-4o"])
    ('MMVet', 'Mine')
    >>> data_set_name("AI2D_TEST_NO_MASK", ["AI2D_TEST"])
    'AI2D_TEST_NO_MASK'
    """
    sure = set(known)
    if rest in sure:
        return rest
    judged = {name for name in {*sure, *answered} - {""} if rest.startswith(name) and JUDGE.match(rest[len(name) :])}
    return max(judged, key=len, default=rest)


def score_values(path: Path) -> Iterator[tuple[str, float]]:
    """(``label|column``, number) of a score file; the label is its split or category, else the texts in front.

    Without any it is ``none``, or the row's number where there are several: rows never take each other's place.

    Raises:
        OSError, ValueError: if the file cannot be read as a table.
    """
    rows = _rows(path)
    labelled_by = _label_columns(rows)
    for label, row in zip(_labels(rows, labelled_by), rows, strict=True):
        for name, value in row.items():
            number = None if name in labelled_by else _finite(value)
            if number is not None:
                yield f"{label}|{name}", number


def _label_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns that say what each row is about, the one that counts first; none where there are none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    usual = tuple(name for wanted in LABEL_COLUMNS for name in names if name.casefold() == wanted)
    if usual or len(rows) < 2:
        return usual
    in_front = itertools.takewhile(lambda name: any(_is_text(row.get(name)) for row in rows), names)
    return tuple(in_front)


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip().casefold() not in NO_NUMBERS and _finite(cell) is None


def _labels(rows: Sequence[Mapping[str, Any]], labelled_by: Sequence[str]) -> list[str]:
    """One for each row: the first that it has, all of them where that is not enough, else its number."""
    texts = [[str(row[name]) for name in labelled_by if row.get(name)] for row in rows]
    for labels in ([own[0] if own else "none" for own in texts], [" ".join(own) for own in texts]):
        if len(set(labels)) == len(rows):
            return labels
    return list(map(str, range(1, len(rows) + 1)))


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix != ".json":
        header, *lines = read_grid(path) or [[]]
        # Not strict: spreadsheets leave out empty cells at the end of a row.
        return [dict(zip(map(str, header), line, strict=False)) for line in lines]
    data = json_document(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and all(isinstance(value, dict) for value in data.values()):
        data = list(data.values())
    rows = data if isinstance(data, list) else [data]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected an object, or a list of objects")
    return rows


def _finite(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_link(path: Path) -> bool:
    """Whether this is a link to a file of the same name, or such a link copied as a text file that holds its target."""
    if path.is_symlink():
        return True
    if path.stat().st_size > LINK_TEXT_BYTES:
        return False
    content = path.read_bytes().strip()
    return b"\n" not in content and content.endswith(b"/" + path.name.encode())


def _read_status(path: Path) -> tuple[Mapping[str, Any], list[Problem]]:
    if not path.is_file() or is_link(path):
        return {}, []
    try:
        status = json_document(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = Problem("error", "unreadable", str(path), f"not read: {error}", "Its score files are still read.")
        return {}, [problem]
    return (status, []) if isinstance(status, dict) else ({}, [])


def _date_of(name: str) -> str:
    match = RUN_DIR.match(name)
    if not match:
        return ""
    try:
        if not match[2]:
            return datetime.datetime.strptime(match[1], "%Y%m%d").date().isoformat()
        return datetime.datetime.strptime(match[1] + match[2], "%Y%m%d%H%M%S").isoformat()
    except ValueError:  # digits, but no date
        return ""


def _strip(name: str, model: str) -> str:
    return name.removeprefix(f"{model}_")
