"""Finds what there is to read under paths and globs, and gives each file to its reader."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mir_plugin.errors import MirError
from mir_plugin.pictures.data import FILE_NAME as PICTURES
from mir_plugin.reports.read import lmms_eval as lmms_eval_tree
from mir_plugin.reports.read import spreadsheet
from mir_plugin.reports.read import vlmevalkit as vlmevalkit_tree
from mir_plugin.reports.read.identity import vlmevalkit_ref
from mir_plugin.reports.read.mir_json import read_mir_json
from mir_plugin.reports.read.openvlm import FILE_NAME as OPENVLM
from mir_plugin.reports.read.openvlm import read_openvlm
from mir_plugin.reports.read.origins import read_origins
from mir_plugin.reports.read.pictures import read_pictures, read_robustness
from mir_plugin.reports.read.records import CheckpointRef, ParsedSources, Problem
from mir_plugin.reports.read.score_table import read_score_table
from mir_plugin.reports.read.sweep_json import SWEEP, read_sweep
from mir_plugin.robustness.results import FILE_NAME as ROBUSTNESS

MIR_JSON_SUFFIX = "mir.json"


def read_sources(sources: Sequence[Path | str]) -> ParsedSources:
    """Read all sources: output folders of host tools, ``mir.json`` files, score tables, and globs of these.

    Folders are searched for host trees and ``*mir.json``; tables of scores are read only when they are named.

    Raises:
        MirError: if there is no source, or one matches nothing.
    """
    if not sources:
        raise MirError(
            "no source to report on; give lmms-eval or VLMEvalKit output folders, mir.json files or score tables."
        )
    paths = list(dict.fromkeys(path for source in sources for path in _expand(str(source))))
    parts = []
    for path in tqdm(paths, desc="reading", unit="source", disable=None, leave=False):
        parts.append(_read_folder(path) if path.is_dir() else _read_file(path))
    total = ParsedSources.total(parts)
    return replace(total, origins=read_origins(score.checkpoint for score in total.scores))


def _expand(source: str) -> list[Path]:
    if os.path.exists(source):  # noqa: PTH110 - false, where Path raises, for what is too long to be a path
        return [Path(source)]
    matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - patterns may be absolute
    if not matches:
        raise MirError(
            f"source {source!r:.200} does not exist and matches nothing; expected a file, a folder or a glob."
        )
    return [Path(match) for match in matches]


def _read_file(path: Path) -> ParsedSources:
    if not path.is_file():
        return _problem(path, "is not a regular file: a pipe, or a link that leads nowhere", "Give a file or a folder.")
    if path.suffix.lower() in spreadsheet.SUFFIXES:
        return read_score_table(path)
    if path.name in (ROBUSTNESS, PICTURES):
        return read_robustness(path) if path.name == ROBUSTNESS else read_pictures(path)
    if path.name == OPENVLM:
        return read_openvlm(path)
    if path.name == SWEEP:
        return read_sweep(path)
    if lmms_eval_tree.is_results_file(path):
        return lmms_eval_tree.read_results(path)
    if path.suffix == ".json":
        return read_mir_json(path)
    what = f"has an unsupported file type ({path.suffix or 'no extension'})"
    return _problem(path, what, "Give .json, .csv, .tsv or .xlsx files, or folders.")


def _problem(path: Path, what: str, remedy: str) -> ParsedSources:
    return ParsedSources(problems=(Problem("error", "unreadable", str(path), what, remedy),))


def _read_folder(folder: Path) -> ParsedSources:
    parts: list[ParsedSources] = []

    def not_listed(error: OSError) -> None:
        what = f"cannot be listed: {error.strerror}"
        parts.append(_problem(Path(error.filename), what, "Correct its permissions; its contents are not read."))

    for where, directories, names in os.walk(folder, onerror=not_listed):
        here = Path(where)
        directories.sort()
        files = sorted(name for name in names if (here / name).is_file())  # reading a pipe would block
        if ROBUSTNESS in files:  # its measurements are the study's, not the leaderboard's
            parts.append(read_robustness(here / ROBUSTNESS))
            directories.clear()
            continue
        if OPENVLM in files:
            parts.append(read_openvlm(here / OPENVLM))
        if SWEEP in files:
            parts.append(read_sweep(here / SWEEP))
        if PICTURES in files:
            parts.append(read_pictures(here / PICTURES))
        if vlmevalkit_tree.is_model_dir(here):
            parts.append(vlmevalkit_tree.read_model_dir(here))
            inside = sorted(
                p for p in here.rglob(f"*{MIR_JSON_SUFFIX}") if p.is_file() and not vlmevalkit_tree.is_link(p)
            )
            parts += [read_mir_json(path, beside=vlmevalkit_ref(here.name)) for path in inside]
            directories.clear()
            continue
        parts += [vlmevalkit_tree.read_model_dir(here, model) for model in vlmevalkit_tree.loose_models(here)]
        results = [here / name for name in files if lmms_eval_tree.is_results_file(here / name)]
        read = [lmms_eval_tree.read_results(path) for path in results]
        beside = _only_checkpoint(read)
        parts += read
        parts += [read_mir_json(here / name, beside) for name in files if name.endswith(MIR_JSON_SUFFIX)]
    total = ParsedSources.total(parts)
    if total == ParsedSources():
        what = "has no lmms-eval results, VLMEvalKit scores or mir.json"
        return ParsedSources(problems=(Problem("warning", "missing", str(folder), what, "Check the path."),))
    return total


def _only_checkpoint(read: Sequence[ParsedSources]) -> CheckpointRef | None:
    """The one checkpoint that a folder of lmms-eval is about; its name holds only two path parts and may be shared."""
    references = [score.checkpoint for part in read for score in part.scores]
    references += [measurement.checkpoint for part in read for measurement in part.measurements]
    found = {reference.keys: reference for reference in references}
    return next(iter(found.values())) if len(found) == 1 else None
