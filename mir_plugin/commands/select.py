"""``mir select``: which of the measured checkpoints to fine-tune."""

from __future__ import annotations

import glob
import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.errors import MirError
from mir_plugin.measurement import options
from mir_plugin.results import RESULT_NAME, MirResult

if TYPE_CHECKING:
    from mir_plugin.selection.select import Candidate, Outcome

EXIT_CODES: dict[Outcome, int] = {"clear": 0, "undecided": 3, "still falling": 4}


def select(
    results: Annotated[
        list[str], typer.Argument(help="mir.json files, folders that hold them (a sweep's, for example), or patterns.")
    ],
    tolerance: options.Tolerance = 0.0,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Select although samples or protocol differ; a warning says so.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Rank measured checkpoints, find where MIR saturates, and recommend one to fine-tune.

    All are compared on the same samples, pair by pair, with 95 % confidence for all comparisons together.

    Examples:

      mir select mir-sweep

      mir select 'mir-out/*/mir.json' --json

    Exit codes: 0 a clear recommendation; 3 undecided, what was measured does not single out one checkpoint;
    4 MIR still falls at the last step, so train further; 1 the results cannot be compared.
    """
    from mir_plugin.commands.sweep_table import print_verdict
    from mir_plugin.commands.terminal import print_ranking
    from mir_plugin.selection import select as selection

    verdict = selection.select(candidates_in(results), tolerance=tolerance, anyway=anyway)
    if json:
        typer.echo(json_module.dumps(verdict.as_json(), indent=2, allow_nan=False))
    else:
        print_ranking(verdict)
        print_verdict(verdict)
    if EXIT_CODES[verdict.outcome]:
        raise typer.Exit(EXIT_CODES[verdict.outcome])


def candidates_in(sources: list[str]) -> list[Candidate]:
    """The results that sources hold, each checkpoint once: a later measurement of the same files replaces an earlier.

    Raises:
        MirError: if a source does not exist or holds no result.
    """
    from mir_plugin.selection.select import Candidate
    from mir_plugin.selection.steps import run_of, step_of
    from mir_plugin.selection.sweep import result_name

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
        name = result_name(checkpoint, {one.name for one in candidates})
        candidates.append(Candidate(name, run_of(checkpoint), step_of(checkpoint), result))
    return candidates


def _result_files(source: str) -> Iterator[Path]:
    matches = [Path(source)] if Path(source).exists() else [Path(match) for match in sorted(glob.glob(source))]  # noqa: PTH207 - may be absolute
    files = [file for match in matches for file in (sorted(match.rglob(RESULT_NAME)) if match.is_dir() else [match])]
    if not files:
        what = f"holds no {RESULT_NAME}" if matches else "does not exist and matches nothing"
        raise MirError(f"{source!r} {what}. Measure with `mir run` or `mir sweep`, and name what they wrote.")
    yield from files
