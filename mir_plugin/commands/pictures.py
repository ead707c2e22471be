"""``mir pictures``: what the tokens of a checkpoint look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import DEFAULT_OUT

PICTURES = "Pictures"


def pictures(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders; their gap curves share a picture.")],
    load: options.Load,
    samples: options.Samples,
    protocol: options.Protocol,
    batch_size: options.BatchSize = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to draw, comma-separated, such as 1,16,32; default: four, evenly spaced.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(help="pca, tsne, and umap where umap-learn is installed.", rich_help_panel=PICTURES),
    ] = "pca,tsne",
    n_tokens: Annotated[
        int, typer.Option(min=10, help="Tokens per modality in a map.", rich_help_panel=PICTURES)
    ] = 500,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="mir.json of another checkpoint whose gap curve to draw too; repeatable.", rich_help_panel=PICTURES
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder; every checkpoint has its mir.json and pictures/ in OUT/NAME.", rich_help_panel=options.OUTPUT
        ),
    ] = DEFAULT_OUT,
    force: options.Force = False,
) -> None:
    """Draw the tokens of a checkpoint: maps by PCA and t-SNE, norms with outlier thresholds, gap curves.

    Measures MIR in the same run, as `mir run` does; existing results are kept. `mir report OUT` includes the pictures
    in its page. The numbers behind maps and histograms are in pictures.json.

    Examples:

      mir pictures CHECKPOINT --layers 1,8,16,32

      mir pictures runs/checkpoint-500 runs/checkpoint-2000 --base-llm vicuna-7b-v1.5 --methods pca,tsne,umap
    """
    from rich.console import Console

    from mir_plugin.commands.terminal import escape
    from mir_plugin.measurement.checkpoint_names import result_name
    from mir_plugin.measurement.measurement import Measurement
    from mir_plugin.model_adapters import open_checkpoint
    from mir_plugin.pictures.data import FOLDER_NAME
    from mir_plugin.pictures.recording import record_pictures
    from mir_plugin.pictures.tokens import PictureOptions, require_methods
    from mir_plugin.reports.figures.pictures import write_gaps, write_pictures
    from mir_plugin.results import result_file

    # A mistaken name is reported before samples are fetched.
    opened = [open_checkpoint(checkpoint, load) for checkpoint in dict.fromkeys(checkpoints)]
    chosen_methods = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
    require_methods(chosen_methods)
    drawing = PictureOptions(_layers(layers), chosen_methods, n_tokens, samples.seed, protocol.n_sigma)
    chosen = samples.choose()
    folders: dict[str, Path] = {}
    written: list[Path] = []
    for checkpoint in opened:
        name = result_name(checkpoint.name, folders)
        folders[name] = out / name
        measurement = Measurement(checkpoint, chosen, protocol, folders[name], batch_size, force=force)
        written += write_pictures(record_pictures(measurement, drawing), folders[name] / FOLDER_NAME)
    results = [result_file(path) for path in (*folders.values(), *(against or []))]
    gaps = write_gaps(results, out)
    console = Console(highlight=False, soft_wrap=True)
    for path in [*written, *([gaps] if gaps else [])]:
        console.print(f"wrote {escape(str(path))} and {path.with_suffix('.svg').name}")


def _layers(text: str | None) -> tuple[int, ...]:
    """Layer numbers in rising order; none for the default."""
    try:
        numbers = sorted({int(part) for part in (text or "").split(",") if part.strip()})
    except ValueError as error:
        raise MirError(f"--layers is {text!r}; expected layer numbers, separated by commas.") from error
    if numbers and numbers[0] < 1:
        raise MirError(f"--layers is {text!r}; layers count from 1.")
    return tuple(numbers)
