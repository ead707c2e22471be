"""Where the checkpoints to compare come from: results that were measured, and folders to measure."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import distinct_names, run_of, shown, step_in_name, step_of
from mir_plugin.measurement.comparable import dtype_of, inputs_of
from mir_plugin.model_adapters.weights.left_by_trainers import remedy_for
from mir_plugin.results import RESULT_NAME, MirResult
from mir_plugin.selection.checkpoint_watcher import checkpoints_below
from mir_plugin.selection.ranked import Candidate


def candidates_in(sources: Sequence[str]) -> list[Candidate]:
    """The results that sources hold, each checkpoint once: a later measurement of the same files replaces an earlier.

    One in another dtype, or with other host settings, replaces none.

    Raises:
        MirError: if a source does not exist or holds no result.
    """
    found = [(path, MirResult.load(path)) for source in sources for path in _result_files(source)]
    places = _places(found)
    newest: dict[tuple[Any, ...], tuple[Path, MirResult]] = {}
    for place, (_, result) in zip(places, found, strict=True):
        key = place, result.fingerprints.get("checkpoint"), dtype_of(result), inputs_of(result)
        if key not in newest or newest[key][1].created < result.created:
            newest[key] = place, result
    return [
        Candidate(name, run_of(shown(place)), step_of(place), result)
        for name, (place, result) in zip(_names(list(newest.values())), newest.values(), strict=True)
    ]


def _names(found: Sequence[tuple[Path, MirResult]]) -> list[str]:
    """A name for each result: the shortest end of its checkpoint's path that no other checkpoint has.

    Results of one checkpoint have what they differ in behind it.
    """
    places = list(dict.fromkeys(place for place, _ in found))
    name_of = dict(zip(places, distinct_names(places), strict=True))
    names = [name_of[place] for place, _ in found]
    for of_result in (
        dtype_of,
        inputs_of,
        _quantization_of,
        lambda result: f"weights {result.fingerprints.get('checkpoint')}",
    ):
        by_name: dict[str, set[str]] = {}
        for name, (_, result) in zip(names, found, strict=True):
            by_name.setdefault(name, set()).add(of_result(result))
        names = [
            f"{name} ({of_result(result)})" if len(by_name[name]) > 1 else name
            for name, (_, result) in zip(names, found, strict=True)
        ]
    return names


def _quantization_of(result: MirResult) -> str:
    return str(result.facts.get("quantization", "not quantised"))


def _places(found: Sequence[tuple[Path, MirResult]]) -> list[Path]:
    """Where each result's checkpoint was.

    A result of schema 1 may know a relative path alone. Where results in different folders give one such name to
    different weights, these were different checkpoints, and the folders tell them apart.
    """
    known = [Path(result.place or result.checkpoint) for _, result in found]
    roots = [path.absolute().parents[min(1, len(path.absolute().parents) - 1)] for path, _ in found]
    weights: dict[Path, dict[str | None, set[Path]]] = {}
    for place, root, (_, result) in zip(known, roots, found, strict=True):
        weights.setdefault(place, {}).setdefault(result.fingerprints.get("checkpoint"), set()).add(root)
    several = {
        run_of(place)
        for place, by_weights in weights.items()
        if not place.is_absolute() and len(by_weights) > 1 and len(set().union(*by_weights.values())) > 1
    }
    return [root / place if run_of(place) in several else place for place, root in zip(known, roots, strict=True)]


def _result_files(source: str) -> Iterator[Path]:
    matches = [Path(source)] if Path(source).exists() else [Path(match) for match in sorted(glob.glob(source))]  # noqa: PTH207 - may be absolute
    files = [file for match in matches for file in (sorted(match.rglob(RESULT_NAME)) if match.is_dir() else [match])]
    if not files:
        reason = f"holds no {RESULT_NAME}" if matches else "does not exist and matches no file"
        raise MirError(f"{source!r} {reason}. Measure with `mir run` or `mir sweep`, and name what they wrote.")
    yield from files


def _of_run(folder: Path) -> list[Path]:
    """The checkpoints inside the folder of a run, with the folder where it is one; without any the folder alone."""
    inside = [one for one in checkpoints_below(folder) if (one / "config.json").is_file()]
    if not inside or (folder / "config.json").is_file():
        inside.append(folder)
    return inside


def _is_of_training(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    named = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return named or step_in_name(folder.name) is not None or remedy_for(folder) is not None


def found_checkpoints(patterns: Sequence[str]) -> list[Path]:
    """The checkpoint folders that patterns match, each once.

    Those count that hold a config.json or an adapter, are named after a step, or hold a training's state: a sweep tells
    of each that cannot be measured why.

    The folder of a run stands for the checkpoints inside it, and for itself if it is one too. Another name that exists,
    and one without wildcards, is taken as it is. Of several spellings of one folder and links to it
    the folder's own name counts, else the first.

    Raises:
        MirError: if a pattern matches no such folder.
    """
    checkpoints: list[Path] = []
    for pattern in patterns:
        if "://" in pattern:
            raise MirError(f"{pattern!r} is a URL; expected a folder or a pattern. Download the checkpoint first.")
        if not glob.has_magic(pattern) or Path(pattern).exists():
            checkpoints += _of_run(Path(pattern))
            continue
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - may be absolute
        folders = [match for match in matches if _is_of_training(match)]
        if not folders:
            raise MirError(
                f"{pattern!r} matches no checkpoint folder "
                + (f"({len(matches)} matches, none with a config.json)." if matches else "(it matches nothing).")
                + " Check the pattern."
            )
        checkpoints += folders
    by_place: dict[Path, Path] = {}
    for checkpoint in checkpoints:
        place = checkpoint.resolve()
        if place not in by_place or (checkpoint.absolute() == place and by_place[place].absolute() != place):
            by_place[place] = checkpoint
    return list(by_place.values())
