"""``mir pictures``: what the tokens of a checkpoint look like."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.errors import MirError
from mir_plugin.measurement import options

if TYPE_CHECKING:
    from mir_plugin.measurement.request import Request
    from mir_plugin.pictures.data import Pictures
    from mir_plugin.pictures.tokens import PictureOptions
    from mir_plugin.types import ModelAdapter

PICTURES = "Pictures"


def pictures(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders; their gap curves share a picture.")],
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
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to draw, such as 1,16,32; default: four spread evenly.", rich_help_panel=PICTURES),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(help="pca, tsne, and umap where umap-learn is installed.", rich_help_panel=PICTURES),
    ] = "pca,tsne",
    n_tokens: Annotated[
        int, typer.Option(min=10, help="Tokens of each modality in a map.", rich_help_panel=PICTURES)
    ] = 500,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="mir.json whose gap curve is drawn too; repeat it.", rich_help_panel=PICTURES),
    ] = None,
    outliers: options.Outliers = options.OutlierChoice.REPLACE,
    no_normalization: options.NoNormalization = False,
    dtype: options.Dtype = options.DtypeChoice.AUTO,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    batch_size: options.BatchSize = None,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder; every checkpoint has its mir.json and pictures/ in OUT/NAME.", rich_help_panel=options.OUTPUT
        ),
    ] = options.DEFAULT_OUT,
    force: Annotated[
        bool, typer.Option("--force", help="Measure and draw again.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> None:
    """Draw the tokens of a checkpoint: maps by PCA and t-SNE, norms with outlier thresholds, gap curves.

    Measures MIR in the same run, as `mir run` does, and keeps what is there already. `mir report OUT` shows the
    pictures in its page. Maps and histograms can be drawn anew from the numbers in pictures.json.

    Examples:

      mir pictures CHECKPOINT --layers 1,8,16,32

      mir pictures runs/checkpoint-500 runs/checkpoint-2000 --base-llm vicuna-7b-v1.5 --methods pca,tsne,umap
    """
    from rich.console import Console
    from rich.markup import escape

    from mir_plugin.measurement.loading import load_options
    from mir_plugin.measurement.request import Request
    from mir_plugin.model_adapters import checkpoint_spec
    from mir_plugin.pictures.data import FOLDER_NAME
    from mir_plugin.pictures.tokens import PictureOptions, require_methods
    from mir_plugin.reports.figures.pictures import write_gaps, write_pictures
    from mir_plugin.results import RESULT_NAME, MirConfig, result_file
    from mir_plugin.selection.sweep import result_name

    # A mistaken name is told at once, not after samples were fetched.
    for checkpoint in checkpoints:
        checkpoint_spec(checkpoint, family)
    chosen_methods = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
    require_methods(chosen_methods)
    chosen_layers = _layers(layers)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = load_options(locals())
    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    drawing = PictureOptions(chosen_layers, chosen_methods, n_tokens, seed, config.n_sigma)
    folders: dict[str, Path] = {}
    written: list[Path] = []
    for checkpoint in dict.fromkeys(checkpoints):
        name = result_name(checkpoint, folders)
        folders[name] = out / name
        request = Request(
            checkpoint, load, sample_set, config, out / name / RESULT_NAME, batch_size=batch_size, force=force
        )
        written += write_pictures(picture_data(request, drawing), out / name / FOLDER_NAME)
    results = [result_file(path) for path in (*folders.values(), *(against or []))]
    gaps = write_gaps(results, out)
    console = Console(highlight=False, soft_wrap=True)
    for path in [*written, *([gaps] if gaps else [])]:
        console.print(f"wrote {escape(str(path))} and {path.with_suffix('.svg').name}")


def picture_data(request: Request, drawing: PictureOptions) -> Pictures:
    """The data of one checkpoint's pictures, saved in a folder beside its mir.json; kept where they are there.

    Raises:
        MirError: if the checkpoint cannot be loaded or measured, or has no such layer.
    """
    from mir_plugin.files.fingerprint import fingerprint
    from mir_plugin.pictures.data import FILE_NAME, FOLDER_NAME
    from mir_plugin.pictures.tokens import PictureRecorder

    existing = request.earlier()
    key = fingerprint([request.fingerprint, dataclasses.asdict(drawing)])
    data_path = request.result_path.parent / FOLDER_NAME / FILE_NAME
    if existing and (kept := _kept(data_path, key)):
        return kept
    with request.held():
        adapter = request.adapter()
        recorder = PictureRecorder(_with_layers(drawing, adapter))
        if existing:
            request.show(adapter, recorder)
        else:
            request.measure(adapter, recorder)
        found = recorder.pictures(str(request.checkpoint), key)
        found.save(data_path)
    return found


def _with_layers(drawing: PictureOptions, adapter: ModelAdapter) -> PictureOptions:
    from mir_plugin.pictures.tokens import spread_layers

    n_layers = len(adapter.decoder.layers)
    beyond = [layer for layer in drawing.layers if layer > n_layers]
    if beyond:
        raise MirError(f"--layers names layer {beyond[0]}; this checkpoint has {n_layers}.")
    return dataclasses.replace(drawing, layers=drawing.layers or spread_layers(n_layers))


def _kept(path: Path, key: str) -> Pictures | None:
    from mir_plugin.pictures.data import Pictures

    try:
        kept = Pictures.load(path)
    except MirError:  # none yet, or of another version
        return None
    return kept if kept.key == key else None


def _layers(text: str | None) -> tuple[int, ...]:
    """Layer numbers, rising; none stands for the default."""
    try:
        found = sorted({int(part) for part in (text or "").split(",") if part.strip()})
    except ValueError as error:
        raise MirError(f"--layers is {text!r}; expected layer numbers, separated by commas.") from error
    if found and found[0] < 1:
        raise MirError(f"--layers is {text!r}; layers count from 1.")
    return tuple(found)
