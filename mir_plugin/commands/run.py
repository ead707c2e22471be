"""``mir run``: one checkpoint → a table of layers, and mir.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.errors import MirError


def run(
    checkpoint: options.Checkpoint,
    load: options.Load,
    samples: options.Samples,
    protocol: options.Protocol,
    precision: options.Precision = None,
    batch_size: options.BatchSize = None,
    no_uncertainty: Annotated[
        bool,
        typer.Option("--no-uncertainty", help="Skip standard errors.", rich_help_panel=options.PROTOCOL),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for mir.json; default mir-out/NAME, or mir-out/RUN_STEP for a step of a run.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure MIR of one checkpoint: how far apart vision and text tokens are in every layer. Lower is better.

    Examples:

      mir run liuhaotian/llava-v1.5-7b

      mir run runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir run CHECKPOINT --images photos/ --texts stories/ --json > mir.json

      mir run CHECKPOINT --precision 0.01

      torchrun --nproc-per-node 2 -m mir_plugin.cli run CHECKPOINT

    A killed run resumes after its last finished layer. Finished runs are not repeated, and results of another
    checkpoint are not replaced, unless --force is given.
    """
    from mir_plugin.commands.terminal import print_result
    from mir_plugin.measurement.checkpoint_names import result_folder
    from mir_plugin.measurement.growing import GrowingMeasurement, NestedSamples
    from mir_plugin.measurement.measurement import Measurement
    from mir_plugin.model_adapters import open_checkpoint
    from mir_plugin.processes import launched_group

    if precision is not None and no_uncertainty:
        raise MirError("--precision needs standard errors; leave out --no-uncertainty.")
    opened = open_checkpoint(checkpoint, load)  # a mistaken name is reported before samples are fetched
    chosen, folder = samples.choose(), out or result_folder(checkpoint)
    with launched_group(load.device) as group:
        measurement = Measurement(
            opened, chosen, protocol, folder, batch_size, not no_uncertainty, force=force, group=group
        )
        if precision is None:
            result = measurement.run()
        else:
            result = GrowingMeasurement(measurement, NestedSamples(chosen, precision)).run()
    if group.rank > 0:
        return
    if json:
        typer.echo(result.to_json(), nl=False)
    else:
        print_result(result, measurement.result_path)
