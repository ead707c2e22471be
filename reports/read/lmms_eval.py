"""Reads the results files of lmms-eval (``<output_path>/<model>/<date>_results.json``)."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.files.strict_json import json_document
from mir_plugin.reports.read.benchmarks import LMMS_EVAL
from mir_plugin.reports.read.identity import checkpoint_ref
from mir_plugin.reports.read.mir_json import measurement_of
from mir_plugin.reports.read.records import (
    CheckpointRef,
    Comparability,
    Measurement,
    ParsedSources,
    Problem,
    Run,
    Score,
)
from mir_plugin.results import MirResult

RESULTS_SUFFIX = "_results.json"
OLD_RESULTS = "results.json"  # in a folder of its own for each run, before September 2024
SUBMISSIONS_DIR = "submissions"  # tasks write look-alikes there; none is a results file
MIR_TASK = "mir"
RERUN = "Run the evaluation again, or delete the file."


def is_results_file(path: Path) -> bool:
    """Whether lmms-eval would give a results file this name and place."""
    if path.name == OLD_RESULTS:
        return _is_old(path)
    return path.name.endswith(RESULTS_SUFFIX) and path.parent.name != SUBMISSIONS_DIR


def _is_old(path: Path) -> bool:
    """Whether a file of this common name has what lmms-eval wrote."""
    try:
        data = json_document(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"results", "configs", "versions", "model_configs"} <= set(data)


def read_results(path: Path) -> ParsedSources:
    """Scores, a MIR value if the task ran, and the run's provenance; a damaged file becomes a problem."""
    try:
        data = json_document(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _unreadable(path, f"invalid JSON ({error})")
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        return _unreadable(path, 'no "results" table')
    if not data["results"]:
        return _unreadable(path, 'the "results" table is empty')
    config: dict[str, Any] = next(
        (data[key] for key in ("config", "model_configs") if isinstance(data.get(key), dict)), {}
    )
    named = _model_name(data, config)
    if not named:
        return _unreadable(path, 'it names no model ("model_name" is empty)')

    date = _iso_date(str(data.get("date") or path.name))
    checkpoint = checkpoint_ref(named, date=date)
    whole = _whole_run(config)
    scores = tuple(_scores(data, checkpoint, whole, date, str(path)))
    version = str(data.get("lmms_eval_version") or "")
    # lmms-eval writes branch@commit of the working directory, whatever repository that is.
    versions = {"lmms-eval": version} if version and "@" not in version else {}
    run = Run(
        run_id=str(path),
        host=LMMS_EVAL,
        checkpoint=named,
        source=str(path),
        date=date,
        tasks=tuple(sorted(data["results"])),
        complete=all(score.complete for score in scores) and whole,
        versions=versions,
    )
    measurements, problems = _measurements(data, checkpoint, date, str(path))
    return ParsedSources(scores, measurements, (run,), problems + _notes(data, path, scores))


def _model_name(data: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """``model_name`` holds peft=, delta= or pretrained=; old files have only the arguments, model objects ``model``."""
    arguments = config.get("model_args")
    named = re.search(r"(?:^|,)pretrained=([^,]+)", arguments) if isinstance(arguments, str) else None
    for value in (data.get("model_name"), named and named[1], config.get("model")):
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _whole_run(config: Mapping[str, Any]) -> bool:
    resolved = config.get("resolved_cli_args")
    predict_only = isinstance(resolved, dict) and bool(resolved.get("predict_only"))
    return config.get("limit") in (None, -1) and not config.get("offset") and not predict_only


def _scores(data: Mapping[str, Any], checkpoint: CheckpointRef, whole: bool, date: str, run_id: str) -> Iterator[Score]:
    counts = data["n-samples"] if isinstance(data.get("n-samples"), dict) else {}
    for task, metrics in data["results"].items():
        if _measures_mir(data, task) or not isinstance(metrics, dict):
            continue
        listed = counts.get(task)
        seen = listed if isinstance(listed, dict) else {}
        effective, original = seen.get("effective"), seen.get("original")
        if effective == 0:
            continue  # a mean over nothing
        for metric, value in numbers(metrics):
            yield Score(
                checkpoint=checkpoint,
                host=LMMS_EVAL,
                task=_with_shots(task, data),
                metric=metric,
                value=value,
                complete=whole and effective == original,
                n_samples=effective if isinstance(effective, int) else None,
                date=date,
                run_id=run_id,
            )


def _with_shots(task: str, data: Mapping[str, Any]) -> str:
    """The task, and how many examples stood before its questions: an 8-shot score is no 0-shot score."""
    shots = data["n-shot"].get(task) if isinstance(data.get("n-shot"), dict) else None
    return f"{task} ({shots}-shot)" if isinstance(shots, int) and shots > 0 else task


def numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The scores of one task: no standard errors, no "N/A", null, NaN, lists, nor the 999 of ``bypass``."""
    for key, value in metrics.items():
        name = key.rsplit(",", 1)[0]
        if "," not in key or "_stderr" in name or name == "bypass" or isinstance(value, bool):
            continue
        try:
            number = float(value) if isinstance(value, (int, float, str)) else math.nan
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            yield key, number


def _measurements(
    data: Mapping[str, Any], checkpoint: CheckpointRef, date: str, run_id: str
) -> tuple[tuple[Measurement, ...], tuple[Problem, ...]]:
    """One per task that measured MIR: the whole result where our task left it, else the number in the table."""
    measurements: list[Measurement] = []
    problems: list[Problem] = []
    for task in data["results"]:
        result = _mir_result(data, task)
        try:
            if result is not None:
                read = MirResult.from_json(json.dumps(result), source=f"{run_id}, task {task}")
                measurements.append(measurement_of(read, run_id, checkpoint))
            elif task == MIR_TASK:
                measurements += _bare_measurement(data["results"][task], checkpoint, date, run_id)
        except MirError as error:
            problems.append(Problem("error", "unreadable", run_id, str(error), RERUN))
    return tuple(measurements), tuple(problems)


def _measures_mir(data: Mapping[str, Any], task: str) -> bool:
    return task == MIR_TASK or _mir_result(data, task) is not None


def _mir_result(data: Mapping[str, Any], task: str) -> Mapping[str, Any] | None:
    value: Any = data
    for key in ("configs", task, "metadata", "mir_result"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _bare_measurement(metrics: Any, checkpoint: CheckpointRef, date: str, run_id: str) -> Iterator[Measurement]:
    values = {key.rsplit(",", 1)[0]: number for key, number in numbers(metrics)} if isinstance(metrics, dict) else {}
    if "mir" in values:
        yield Measurement(
            checkpoint=checkpoint,
            mir=values["mir"],
            comparability=Comparability(estimator="exact"),
            mir_published=values.get("mir_published"),
            mir_published_upper=values.get("mir_published_upper"),
            date=date,
            run_id=run_id,
        )


def _notes(data: Mapping[str, Any], path: Path, scores: tuple[Score, ...]) -> tuple[Problem, ...]:
    groups = data["group_subtasks"] if isinstance(data.get("group_subtasks"), dict) else {}
    scored = {score.task for score in scores} | {group for group, members in groups.items() if members}
    return tuple(
        Problem(
            "warning",
            "missing",
            str(path),
            f"task {task} has no score (only N/A, empty or bypassed values, or 0 samples)",
            RERUN,
        )
        for task in data["results"]
        if _with_shots(task, data) not in scored and task not in scored and not _measures_mir(data, task)
    )


def _iso_date(text: str) -> str:
    """``20261121_095319`` → ``2026-11-21T09:53:19``, in the run's own time zone, which is not stored."""
    try:
        return datetime.datetime.strptime(text[:15], "%Y%m%d_%H%M%S").isoformat()
    except ValueError:
        return ""


def _unreadable(path: Path, why: str) -> ParsedSources:
    problem = Problem("error", "unreadable", str(path), f"not read: {why}", RERUN)
    return ParsedSources(problems=(problem,))
