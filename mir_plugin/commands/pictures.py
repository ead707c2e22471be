"""``mir pictures``: what the tokens of a checkpoint look like."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.picture_data import Pictures
    from mir_plugin.results import MirConfig
    from mir_plugin.samples import SampleSet
    from mir_plugin.token_pictures import PictureOptions
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
    ] = Path("mir-out"),
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

    from mir_plugin.commands.run import name_of
    from mir_plugin.model_adapters import LoadOptions, checkpoint_spec
    from mir_plugin.picture_data import FOLDER_NAME
    from mir_plugin.reports.picture_figures import write_gaps, write_pictures
    from mir_plugin.results import MirConfig
    from mir_plugin.sweep import result_name
    from mir_plugin.token_pictures import PictureOptions, require_methods

    # A mistaken name is told at once, not after samples were fetched.
    for checkpoint in checkpoints:
        checkpoint_spec(checkpoint, family)
    chosen_methods = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
    require_methods(chosen_methods)
    chosen_layers = _layers(layers)
    results = [path / "mir.json" if path.is_dir() else path for path in against or []]
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = LoadOptions(
        base_llm=base_llm,
        vision_tower=vision_tower,
        vision_tower_aux=vision_tower_aux,
        family=family,
        dtype=dtype.value,
        device=device,
        device_memory=options.bytes_of(device_memory),
        merge_lora=merge_lora,
        trust_remote_code=trust_remote_code,
    )
    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    drawing = PictureOptions(chosen_layers, chosen_methods, n_tokens, seed, config.n_sigma)
    names: dict[str, Path] = {}
    written: list[Path] = []
    for checkpoint in dict.fromkeys(checkpoints):
        name = name_of(checkpoint)
        name = result_name(checkpoint, names) if name in names else name
        names[name] = checkpoint
        found = picture_data(checkpoint, load, sample_set, config, drawing, out / name, batch_size, force=force)
        written += write_pictures(found, out / name / FOLDER_NAME)
    gaps = write_gaps([*(out / name / "mir.json" for name in names), *results], out)
    console = Console(highlight=False, soft_wrap=True)
    for path in [*written, *([gaps] if gaps else [])]:
        console.print(f"wrote {escape(str(path))} and {path.with_suffix('.svg').name}")


def picture_data(
    checkpoint: Path,
    load: LoadOptions,
    sample_set: SampleSet,
    config: MirConfig,
    drawing: PictureOptions,
    folder: Path,
    batch_size: int | None,
    *,
    force: bool = False,
) -> Pictures:
    """The data of one checkpoint's pictures, saved in the folder beside its mir.json; kept where they are there.

    Raises:
        MirError: if the checkpoint cannot be loaded or measured, or has no such layer.
    """
    from mir_plugin.commands.run import earlier_result, held, measure_and_save
    from mir_plugin.distributed import ALONE
    from mir_plugin.engine import layer_features
    from mir_plugin.fingerprint import fingerprint
    from mir_plugin.model_adapters import load_adapter
    from mir_plugin.picture_data import FILE_NAME, FOLDER_NAME
    from mir_plugin.token_pictures import PictureRecorder

    result_path = folder / "mir.json"
    existing, request = earlier_result(
        checkpoint, load, sample_set, config, result_path, with_uncertainty=True, force=force, group=ALONE
    )
    key = fingerprint([request, dataclasses.asdict(drawing)])
    data_path = folder / FOLDER_NAME / FILE_NAME
    if existing and (kept := _kept(data_path, key)):
        return kept
    with held(folder, ALONE):
        adapter = load_adapter(checkpoint, load)
        recorder = PictureRecorder(_with_layers(drawing, adapter))
        if existing:
            for features in layer_features(adapter, sample_set.samples, batch_size=batch_size):
                recorder(features)
        else:
            measure_and_save(
                adapter,
                sample_set,
                config,
                result_path,
                checkpoint=checkpoint,
                request=request,
                batch_size=batch_size,
                with_uncertainty=True,
                group=ALONE,
                force=force,
                watch=recorder,
            )
        found = recorder.pictures(str(checkpoint), key)
        found.save(data_path)
    return found


def _with_layers(drawing: PictureOptions, adapter: ModelAdapter) -> PictureOptions:
    from mir_plugin.token_pictures import spread_layers

    n_layers = len(adapter.decoder.layers)
    beyond = [layer for layer in drawing.layers if layer > n_layers]
    if beyond:
        raise MirError(f"--layers names layer {beyond[0]}; this checkpoint has {n_layers}.")
    return dataclasses.replace(drawing, layers=drawing.layers or spread_layers(n_layers))


def _kept(path: Path, key: str) -> Pictures | None:
    from mir_plugin.picture_data import Pictures

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
