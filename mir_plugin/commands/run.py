"""``mir run``: one checkpoint → a table of layers, and mir.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.measurement import options

if TYPE_CHECKING:
    from mir_plugin.measurement.request import Request
    from mir_plugin.results import MirResult


def run(
    checkpoint: options.Checkpoint,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    images: options.Images = None,
    texts: options.Texts = None,
    dataset: options.Dataset = None,
    embedded: options.Embedded = False,
    n_samples: options.NSamples = None,
    seed: options.Seed = 0,
    outliers: options.Outliers = options.OutlierChoice.REPLACE,
    no_normalization: options.NoNormalization = False,
    no_uncertainty: Annotated[
        bool,
        typer.Option("--no-uncertainty", help="Skip standard errors.", rich_help_panel=options.PROTOCOL),
    ] = False,
    dtype: options.Dtype = options.DtypeChoice.AUTO,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    batch_size: options.BatchSize = None,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for mir.json; default mir-out/NAME, for a step mir-out/RUN_NAME.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Measure again although this very result, or a part, exists; replace that of another checkpoint.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure MIR of one checkpoint: how far apart vision and text tokens are in every layer. Lower is better.

    Examples:

      mir run liuhaotian/llava-v1.5-7b

      mir run runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir run CHECKPOINT --images photos/ --texts stories/ --json > mir.json

      torchrun --nproc_per_node 2 -m mir_plugin.cli run CHECKPOINT

    A run that was killed continues after its last finished layer; one that finished is not repeated, and the result of
    another checkpoint is not replaced.
    """
    from mir_plugin.commands.terminal import print_result
    from mir_plugin.measurement.loading import load_options
    from mir_plugin.measurement.request import Request
    from mir_plugin.model_adapters import checkpoint_spec
    from mir_plugin.processes import launched_group
    from mir_plugin.results import RESULT_NAME, MirConfig
    from mir_plugin.selection.sweep import result_name

    # A mistaken name is told at once, not after samples were fetched.
    checkpoint_spec(checkpoint, family)
    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = load_options(locals())
    folder = out or options.DEFAULT_OUT / result_name(checkpoint)
    with launched_group(load.device) as group:
        request = Request(
            checkpoint,
            load,
            sample_set,
            config,
            folder / RESULT_NAME,
            batch_size=batch_size,
            with_uncertainty=not no_uncertainty,
            force=force,
            group=group,
        )
        result = measure_once(request)
    if group.rank > 0:
        return
    if json:
        typer.echo(result.to_json(), nl=False)
    else:
        print_result(result, request.result_path)


def measure_once(request: Request) -> MirResult:
    """The result that is there if it answers this very request; else measured and saved.

    Raises:
        MirError: if the checkpoint cannot be loaded or measured, or another one's result is in the place.
    """
    if existing := request.earlier():
        request.note(f"measured before, on {existing.created}: this is {request.result_path}. --force measures again.")
        return existing
    with request.held():
        result = request.measure(request.adapter())
    if result.engine["resumed_layers"]:
        request.note(f"{result.engine['resumed_layers']} layers were finished by an earlier run and kept.")
    return result
