"""Options that several subcommands share, and what they stand for. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from mir_plugin.samples.sample_set import SampleSet


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


DEFAULT_OUT = Path("mir-out")
LOADING, SAMPLES, PROTOCOL, OUTPUT = "Loading", "Samples", "Protocol", "Output"

Checkpoint = Annotated[Path, typer.Argument(help="Folder of the checkpoint, in its original or Hugging Face format.")]
BaseLlm = Annotated[
    Path | None,
    typer.Option(help="Language model a projector-only or LoRA checkpoint was trained on.", rich_help_panel=LOADING),
]
VisionTower = Annotated[
    Path | None,
    typer.Option(help="Vision tower to use instead of the one the checkpoint implies.", rich_help_panel=LOADING),
]
VisionTowerAux = Annotated[
    Path | None, typer.Option(help="The same for Mini-Gemini's second tower.", rich_help_panel=LOADING)
]
Family = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint family, when recognition guesses wrong (`mir adapters`); or module:ATTRIBUTE of your own.",
        rich_help_panel=LOADING,
    ),
]
Dtype = Annotated[DtypeChoice, typer.Option(help="auto: as the checkpoint was saved.", rich_help_panel=LOADING)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=LOADING)]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Stay within this much device memory, e.g. 6GB: decoder layers are streamed from disk.",
        rich_help_panel=LOADING,
    ),
]
MergeLora = Annotated[
    bool, typer.Option("--merge-lora/--no-merge-lora", help="Fold LoRA into the base weights.", rich_help_panel=LOADING)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow code inside the checkpoint to run.", rich_help_panel=LOADING)
]

Images = Annotated[
    Path | None, typer.Option(help="Folder of images; the i-th is paired with the i-th text.", rich_help_panel=SAMPLES)
]
Texts = Annotated[
    Path | None, typer.Option(help="Folder of text files (.txt, CNN .story); needs --images.", rich_help_panel=SAMPLES)
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face dataset with images and text: NAME or folder[,config=...][,split=...][,image=COLUMN]"
        "[,text=COLUMN].",
        rich_help_panel=SAMPLES,
    ),
]
Embedded = Annotated[
    bool,
    typer.Option(
        "--embedded", help="Photographs and prose that ship with this program; no network.", rich_help_panel=SAMPLES
    ),
]
NSamples = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many samples; default 100, or all pairs of --images/--texts.", rich_help_panel=SAMPLES
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the choice of samples.", rich_help_panel=SAMPLES)]

Outliers = Annotated[
    OutlierChoice,
    typer.Option(
        help="replace: outlier tokens become the median (published program); remove: they are dropped.",
        rich_help_panel=PROTOCOL,
    ),
]
NoNormalization = Annotated[
    bool, typer.Option("--no-normalization", help="Skip text-centric normalization.", rich_help_panel=PROTOCOL)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Samples per forward pass; default 1 on a CPU, 8 on an accelerator.", rich_help_panel=LOADING
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(min=0, help="Differences of MIR up to this count as none in the verdict.", rich_help_panel=PROTOCOL),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else.", rich_help_panel=OUTPUT)
]


def chosen_samples(
    images: Path | None, texts: Path | None, dataset: str | None, embedded: bool, n_samples: int | None, seed: int
) -> SampleSet:
    """The sample set the options name; without any of them, the paper's.

    Raises:
        MirError: if more than one source is named, or --images comes without --texts.
    """
    from mir_plugin.samples import sources as sample_sources
    from mir_plugin.samples.embedded import embedded_samples
    from mir_plugin.samples.sources import N_PAPER_SAMPLES

    if (images is None) != (texts is None):
        raise MirError("--images and --texts go together: the i-th image is paired with the i-th text.")
    if sum([images is not None, dataset is not None, embedded]) > 1:
        raise MirError("name one source of samples: --images with --texts, --dataset, or --embedded.")
    if images is not None and texts is not None:
        return sample_sources.from_folders(images, texts, n_samples=n_samples, seed=seed)
    if dataset is not None:
        return sample_sources.from_dataset_address(dataset, n_samples=n_samples or N_PAPER_SAMPLES, seed=seed)
    if embedded:
        return embedded_samples(n_samples or N_PAPER_SAMPLES, seed=seed)
    return sample_sources.paper_samples(n_samples or N_PAPER_SAMPLES, seed=seed)


def truth(value: object, name: str) -> bool:
    """Whether a value from outside means true; Python takes the text "false" for true.

    >>> truth("False", "merge_lora"), truth("1", "merge_lora")
    (False, True)

    Args:
        name: what the value was given for, for the message.
    Raises:
        MirError: if it says neither.
    """
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise MirError(f"{name} is {value!r}; expected true or false.")
    return words[str(value).lower()]


def bytes_of(size: str | None) -> int | None:
    """Bytes of a size such as "6GB", "512MiB" or "8e9"; decimal units unless an i says otherwise.

    >>> bytes_of("6GB"), bytes_of("1.5 MiB")
    (6000000000, 1572864)
    """
    if size is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", size, flags=re.IGNORECASE)
    if not match:
        raise MirError(f"size {size!r} is not understood; write for example 6GB or 512MiB.")
    number, prefix, binary = match.groups()
    try:
        n_bytes = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    except (ValueError, OverflowError) as error:
        raise MirError(f"size {size!r} is not understood; write for example 6GB or 512MiB.") from error
    if n_bytes < 1:
        raise MirError(f"size {size!r} is nothing; write for example 6GB or 512MiB.")
    return n_bytes
