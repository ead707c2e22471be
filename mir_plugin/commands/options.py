"""Options that several subcommands share. Imports neither torch nor transformers."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands.option_groups import OptionGroup
from mir_plugin.errors import MirError
from mir_plugin.measurement.options import SampleOptions, on_own_device, parse_size
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.results import MirConfig
from mir_plugin.selection.ray_options import RayOptions

N_QUESTIONS = 50
LOADING, SAMPLES, PROTOCOL, OUTPUT, CLUSTER = "Loading", "Samples", "Protocol", "Output", "Cluster"


class OutlierChoice(str, Enum):
    """Values of ``--outliers``."""

    REPLACE = "replace"
    REMOVE = "remove"
    NONE = "none"


class DtypeChoice(str, Enum):
    """Values of ``--dtype``."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


NSamples = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of samples; default 100, or all pairs of --images/--texts.", rich_help_panel=SAMPLES
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed for choosing samples.", rich_help_panel=SAMPLES)]


def load_options(
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            "--processor",
            help="Folder that supplies what the checkpoint lacks: processor, config.json, an adapter's base weights.",
            rich_help_panel=LOADING,
        ),
    ] = None,
    base_llm: Annotated[
        Path | None,
        typer.Option(help="Base language model of a projector-only or LoRA checkpoint.", rich_help_panel=LOADING),
    ] = None,
    vision_tower: Annotated[
        Path | None,
        typer.Option(help="Vision tower to use instead of the checkpoint's own.", rich_help_panel=LOADING),
    ] = None,
    vision_tower_aux: Annotated[
        Path | None, typer.Option(help="The same for Mini-Gemini's second tower.", rich_help_panel=LOADING)
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint family, if it is not recognised (see `mir adapters`); or your own, as module:ATTRIBUTE.",
            rich_help_panel=LOADING,
        ),
    ] = None,
    dtype: Annotated[
        DtypeChoice, typer.Option(help="auto: as the checkpoint was saved.", rich_help_panel=LOADING)
    ] = DtypeChoice.AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=LOADING)] = "auto",
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit for device memory, e.g. 6GB; decoder layers are streamed from disk to stay below it.",
            rich_help_panel=LOADING,
        ),
    ] = None,
    merge_lora: Annotated[
        bool,
        typer.Option(
            "--merge-lora/--no-merge-lora", help="Merge LoRA weights into the base weights.", rich_help_panel=LOADING
        ),
    ] = True,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code from the checkpoint folder.", rich_help_panel=LOADING),
    ] = False,
    unpickle: Annotated[
        bool,
        typer.Option(
            "--unpickle",
            help="Read FSDP's .distcp shards and ZeRO partitions. Unpickles them, which may run code.",
            rich_help_panel=LOADING,
        ),
    ] = False,
) -> LoadOptions:
    """How to load a checkpoint."""
    options = LoadOptions(
        base=base,
        base_llm=base_llm,
        vision_tower=vision_tower,
        vision_tower_aux=vision_tower_aux,
        family=family,
        dtype=dtype.value,
        device=device,
        device_memory=None if device_memory is None else parse_size(device_memory),
        merge_lora=merge_lora,
        trust_remote_code=trust_remote_code,
        unpickle=unpickle,
    )
    return on_own_device(options)


def sample_options(
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images; the i-th goes with the i-th text.", rich_help_panel=SAMPLES),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Folder of texts (.txt, CNN .story); needs --images.", rich_help_panel=SAMPLES)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face dataset with images and text: NAME or folder, then any of ,config=NAME ,split=NAME "
            ",image=COLUMN ,text=COLUMN, without spaces.",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    embedded: Annotated[
        bool,
        typer.Option(
            "--embedded",
            help="Photographs and prose shipped with this package; needs no network.",
            rich_help_panel=SAMPLES,
        ),
    ] = False,
    n_samples: NSamples = None,
    seed: Seed = 0,
) -> SampleOptions:
    """Which samples to measure on."""
    return SampleOptions(images, texts, dataset, embedded, n_samples, seed)


def ray_options(
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Measure on a Ray cluster, several checkpoints at a time. Without an address: the cluster this "
            "machine belongs to, else one that is started for the sweep. Needs mir-plugin[ray].",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    gpus_per_checkpoint: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --ray: GPUs for each checkpoint, for example 0.5 or 0; default 1 where the cluster has any.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    cpus_per_checkpoint: Annotated[
        int,
        typer.Option(
            min=1, help="With --ray: processor cores, and threads, for each checkpoint.", rich_help_panel=CLUSTER
        ),
    ] = 1,
    max_parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray: checkpoints at a time; default: as the cluster has room for.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
) -> RayOptions | None:
    """Where to measure; None for here."""
    if ray is None:
        if gpus_per_checkpoint is not None or cpus_per_checkpoint != 1 or max_parallel is not None:
            raise MirError("--gpus-per-checkpoint, --cpus-per-checkpoint and --max-parallel need --ray.")
        return None
    return RayOptions(ray, gpus_per_checkpoint, cpus_per_checkpoint, max_parallel)


def protocol(
    outliers: Annotated[
        OutlierChoice,
        typer.Option(
            help="replace: set outlier tokens to the median (published code); remove: drop them.",
            rich_help_panel=PROTOCOL,
        ),
    ] = OutlierChoice.REPLACE,
    no_normalization: Annotated[
        bool, typer.Option("--no-normalization", help="Skip text-centric normalization.", rich_help_panel=PROTOCOL)
    ] = False,
) -> MirConfig:
    """How to measure."""
    return MirConfig(outliers=outliers.value, normalize=not no_normalization)


Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint folder, in its original or in Hugging Face format.")]
Load = Annotated[LoadOptions, OptionGroup(load_options)]
LoadWhole = Annotated[LoadOptions, OptionGroup(load_options, without=("device_memory",))]
Parts = Annotated[
    LoadOptions, OptionGroup(load_options, without=("dtype", "device", "device_memory", "trust_remote_code"))
]
Samples = Annotated[SampleOptions, OptionGroup(sample_options)]
Ray = Annotated["RayOptions | None", OptionGroup(ray_options)]
Protocol = Annotated[MirConfig, OptionGroup(protocol)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Samples per forward pass; default 1 on a CPU, 8 on an accelerator.", rich_help_panel=LOADING
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0,
        help="Differences in MIR up to this do not matter, even where they are certain; 0 is strict.",
        rich_help_panel=PROTOCOL,
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="SE",
        help="Measure only as many samples as it takes: 16, then 32, 64, ... up to --n-samples, until MIR's standard "
        "error is at most this, for example 0.01; a sweep also stops where the comparison with the best is decided.",
        rich_help_panel=SAMPLES,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Measure again and replace existing results.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else.", rich_help_panel=OUTPUT)
]
