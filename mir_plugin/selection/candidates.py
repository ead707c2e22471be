"""Where the checkpoints to compare come from: results that were measured, and folders to measure."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import result_name, run_of, step_of
from mir_plugin.results import RESULT_NAME, MirResult
from mir_plugin.selection.select import Candidate


def candidates_in(sources: Sequence[str]) -> list[Candidate]:
    """The results that sources hold, each checkpoint once: a later measurement of the same files replaces an earlier.

    Raises:
        MirError: if a source does not exist or holds no result.
    """
    newest: dict[tuple[str, str | None], MirResult] = {}
    for source in sources:
        for path in _result_files(source):
            result = MirResult.load(path)
            key = result.checkpoint, result.fingerprints.get("checkpoint")
            if key not in newest or newest[key].created < result.created:
                newest[key] = result
    candidates: list[Candidate] = []
    for result in newest.values():
        checkpoint = Path(result.checkpoint)
        name = result_name(checkpoint, {candidate.name for candidate in candidates})
        candidates.append(Candidate(name, run_of(checkpoint), step_of(checkpoint), result))
    return candidates


def _result_files(source: str) -> Iterator[Path]:
    matches = [Path(source)] if Path(source).exists() else [Path(match) for match in sorted(glob.glob(source))]  # noqa: PTH207 - may be absolute
    files = [file for match in matches for file in (sorted(match.rglob(RESULT_NAME)) if match.is_dir() else [match])]
    if not files:
        reason = f"holds no {RESULT_NAME}" if matches else "does not exist and matches no file"
        raise MirError(f"{source!r} {reason}. Measure with `mir run` or `mir sweep`, and name what they wrote.")
    yield from files


def found_checkpoints(patterns: Sequence[str]) -> list[Path]:
    """The folders that patterns match and that hold a config.json; a name without wildcards is taken as it is.

    Raises:
        MirError: if a pattern matches no such folder.
    """
    checkpoints: list[Path] = []
    for pattern in patterns:
        if "://" in pattern:
            raise MirError(f"{pattern!r} is a URL; expected a folder or a pattern. Download the checkpoint first.")
        if not glob.has_magic(pattern):
            checkpoints.append(Path(pattern))
            continue
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - may be absolute
        folders = [match for match in matches if (match / "config.json").is_file()]
        if not folders:
            raise MirError(
                f"{pattern!r} matches no checkpoint folder ({len(matches)} matches, none with a config.json). "
                "Check the pattern; quote it so that the shell leaves it alone."
            )
        checkpoints += folders
    return checkpoints
