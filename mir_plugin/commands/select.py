"""``mir select``: which of the measured checkpoints to fine-tune."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.commands.subcommand import verdict_code
from mir_plugin.metric.uncertainty import TOLERANCE


def select(
    results: Annotated[
        list[str], typer.Argument(help="mir.json files, their folders (a sweep's, for example), or patterns.")
    ],
    tolerance: options.Tolerance = TOLERANCE,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Select even if samples or protocol differ; with a warning.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Rank measured checkpoints, find where MIR saturates, and recommend one to fine-tune.

    Along the steps of a run each checkpoint is compared with the lowest of the run, and the lowest of each run with the
    lowest of all: on the same samples, pair by pair, with 95 % confidence for all comparisons of a set together.

    Examples:

      mir select mir-sweep

      mir select 'mir-out/*/mir.json' --json

    Exit codes, as of `mir sweep`: 0 a clear recommendation, or one result; 3 undecided, the results do not single out
    one checkpoint; 4 MIR is still falling at the last step, so train further; 1 the results cannot be compared.
    """
    from mir_plugin.commands.sweep_table import print_verdict
    from mir_plugin.commands.terminal import print_ranking
    from mir_plugin.selection.candidates import candidates_in
    from mir_plugin.selection.select import select as select_candidates

    verdict = select_candidates(candidates_in(results), tolerance=tolerance, anyway=anyway)
    if json:
        typer.echo(json_module.dumps(verdict.as_json(), indent=2, allow_nan=False))
    else:
        print_ranking(verdict)
        print_verdict(verdict)
    if code := verdict_code(verdict):
        raise typer.Exit(code)
