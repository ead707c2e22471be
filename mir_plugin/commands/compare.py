"""``mir compare``: are two checkpoints distinguishable?"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.metric.uncertainty import TOLERANCE


def compare(
    a: Annotated[Path, typer.Argument(help="A mir.json, or its folder.")],
    b: Annotated[Path, typer.Argument(help="The other result.")],
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare even if samples or protocol differ; the differences are listed."),
    ] = False,
    tolerance: options.Tolerance = TOLERANCE,
    json: options.Json = False,
) -> None:
    """Test whether two results differ by more than the choice of samples explains, and whether that matters.

    Both must have been measured on the same samples with the same protocol. The comparison is then paired, sample by
    sample, and detects much smaller differences than the two intervals do. The difference is B − A.

    Examples:

      mir compare mir-out/llava-7b mir-out/llava-7b-moca
    """
    from mir_plugin.commands.terminal import print_comparison
    from mir_plugin.results import MirResult
    from mir_plugin.selection.comparison import compare_results

    one, other = (MirResult.load(path) for path in (a, b))
    comparison = compare_results(one, other, anyway=anyway, tolerance=tolerance)
    if json:
        typer.echo(json_module.dumps(comparison.as_json(), indent=2, allow_nan=False))
    else:
        print_comparison(comparison)
