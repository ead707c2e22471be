"""``mir run``: one checkpoint → a table of layers, and mir.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands import options


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
    outliers: options.Outliers = options.OutlierChoice.replace,
    no_normalization: options.NoNormalization = False,
    dtype: options.Dtype = options.DtypeChoice.auto,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    batch_size: options.BatchSize = 1,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for mir.json; default mir-out/NAME.", rich_help_panel=options.OUTPUT),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Measure again although a result exists.", rich_help_panel=options.OUTPUT),
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure MIR of one checkpoint: how far apart vision and text tokens are in every layer. Lower is better.

    Examples:

      mir run liuhaotian/llava-v1.5-7b

      mir run runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir run CHECKPOINT --images photos/ --texts stories/ --json > mir.json
    """
    from mir_plugin.commands.terminal import print_result
    from mir_plugin.model_adapters import LoadOptions, load_adapter
    from mir_plugin.results import MirConfig
    from mir_plugin.run import measure

    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    adapter = load_adapter(
        checkpoint,
        LoadOptions(
            base_llm=base_llm,
            vision_tower=vision_tower,
            vision_tower_aux=vision_tower_aux,
            family=family,
            dtype=dtype.value,
            device=device,
            device_memory=options.bytes_of(device_memory),
            merge_lora=merge_lora,
            trust_remote_code=trust_remote_code,
        ),
    )
    result_path = (out or Path("mir-out") / name_of(checkpoint)) / "mir.json"
    result = measure(adapter, sample_set, config, checkpoint=str(checkpoint), batch_size=batch_size)
    result.save(result_path)
    if json:
        typer.echo(result.to_json(), nl=False)
    else:
        print_result(result, result_path)


def name_of(checkpoint: Path) -> str:
    """Folder name of a checkpoint; an intermediate one keeps its run's name in front.

    >>> name_of(Path("runs/llava-7b/checkpoint-200"))
    'llava-7b_checkpoint-200'
    """
    path = checkpoint.absolute()
    return f"{path.parent.name}_{path.name}" if path.name.startswith("checkpoint-") else path.name
