"""``mir robustness``: how far MIR depends on what it is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.errors import MirError
from mir_plugin.measurement import options

if TYPE_CHECKING:
    from mir_plugin.robustness.studies import Kinds

STUDIES = "Studies"
DEFAULT_SAMPLES = 100


def robustness(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoint folders; with several, their order is watched too.")
    ],
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of one kind of images; repeat it. Default: photographs, digits, pages of print.",
            rich_help_panel=options.SAMPLES,
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of one kind of texts; repeat it. Default: prose, code.", rich_help_panel=options.SAMPLES
        ),
    ] = None,
    pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="IMAGES TEXTS",
            help="Two folders; the i-th text belongs to the i-th image. Default: digits with captions.",
            rich_help_panel=options.SAMPLES,
        ),
    ] = None,
    seen: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="IMAGES TEXTS", help="Pairs of the training data.", rich_help_panel=options.SAMPLES),
    ] = None,
    unseen: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="IMAGES TEXTS", help="Pairs like those, but held out.", rich_help_panel=options.SAMPLES),
    ] = None,
    n_samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Samples under every condition; default 100, or as many as the smallest kind has.",
            rich_help_panel=options.SAMPLES,
        ),
    ] = None,
    seed: options.Seed = 0,
    studies: Annotated[
        str,
        typer.Option(
            help="Which to run, separated by commas.",
            rich_help_panel=STUDIES,
        ),
    ] = "content,template,relevance,exposure,number",
    sizes: Annotated[
        str,
        typer.Option(
            help="Numbers of samples to choose; those not below --n-samples fall away.", rich_help_panel=STUDIES
        ),
    ] = "1,2,5,10,20,50,100,200,500,1000",
    repeats: Annotated[
        int, typer.Option(min=1, help="Choices of each number, with the seeds 0, 1, ….", rich_help_panel=STUDIES)
    ] = 10,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="mir.json of another checkpoint, to hold the spread against; repeat it.", rich_help_panel=STUDIES
        ),
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
        Path, typer.Option(help="Folder for report, figure and every measurement.", rich_help_panel=options.OUTPUT)
    ] = Path("mir-robustness"),
    force: Annotated[
        bool,
        typer.Option("--force", help="Measure again what is measured already.", rich_help_panel=options.OUTPUT),
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure one or several checkpoints under many conditions: how far does MIR depend on what it is measured on?

    Studies: content (kinds of images × kinds of texts), template (with and without the conversation around them),
    relevance (text that belongs to the image, or to another), exposure (data seen and not seen in training), number
    (1 to N samples, several choices of each). Without data of your own it uses what ships with Python packages.

    A condition that is measured already is not measured again; the choices of the number study share one run.

    Examples:

      mir robustness CHECKPOINT

      mir robustness runs/a runs/b --images photos --images charts --texts news --texts captions

      mir robustness CHECKPOINT --studies number --sizes 1,10,100 --repeats 20 --against mir-out/other/mir.json
    """
    from mir_plugin.measurement.loading import load_options
    from mir_plugin.model_adapters import checkpoint_spec
    from mir_plugin.reports.figures.robustness import write_robustness_figure
    from mir_plugin.reports.workbook.robustness import write_robustness_workbook
    from mir_plugin.results import MirConfig, MirResult
    from mir_plugin.robustness.results import FILE_NAME
    from mir_plugin.robustness.runs import run_plan
    from mir_plugin.robustness.studies import plan
    from mir_plugin.robustness.table import print_robustness
    from mir_plugin.selection.sweep import result_name

    # A mistaken name is told at once, not after the first checkpoint was measured.
    for checkpoint in checkpoints:
        checkpoint_spec(checkpoint, family)
    others = [MirResult.load(path) for path in against or []]
    kinds = _kinds(images, texts, pairs, seen, unseen, checkpoints)
    planned = plan(
        kinds,
        [study.strip() for study in studies.split(",") if study.strip()],
        n_samples or min(DEFAULT_SAMPLES, kinds.fewest),
        seed,
        sizes=_whole_numbers(sizes),
        repeats=repeats,
    )
    names: dict[str, Path] = {}
    for checkpoint in dict.fromkeys(checkpoints):
        names[result_name(checkpoint, names)] = checkpoint
    found = run_plan(
        planned,
        names,
        load_options(locals()),
        MirConfig(outliers=outliers.value, normalize=not no_normalization),
        out,
        batch_size=batch_size,
        against=others,
        force=force,
    )
    paths = [
        found.save(out / FILE_NAME),
        *write_robustness_figure(found, out),
        write_robustness_workbook(found, out / "robustness.xlsx"),
    ]
    if json:
        typer.echo(found.to_json(), nl=False)
    else:
        print_robustness(found, paths)


def _kinds(
    images: list[Path] | None,
    texts: list[Path] | None,
    pairs: tuple[Path, Path] | None,
    seen: tuple[Path, Path] | None,
    unseen: tuple[Path, Path] | None,
    checkpoints: list[Path],
) -> Kinds:
    """What the options name; what is embedded where they name nothing."""
    from mir_plugin.robustness import contents
    from mir_plugin.robustness.studies import Kinds
    from mir_plugin.samples.embedded import micro_checkpoints

    if (seen is None) != (unseen is None):
        raise MirError("--seen and --unseen go together: one is compared with the other.")
    known = {path.resolve() for path in micro_checkpoints()}
    of_training: tuple[contents.Pairs | None, contents.Pairs | None] = (None, None)
    if seen and unseen:
        of_training = contents.folder_pairs(*seen), contents.folder_pairs(*unseen)
    elif all(checkpoint.resolve() in known for checkpoint in checkpoints):
        of_training = contents.embedded_pairs("train"), contents.embedded_pairs("test")
    kinds = Kinds(
        images=tuple(map(contents.folder_images, images)) if images else contents.embedded_images(),
        texts=tuple(map(contents.folder_texts, texts)) if texts else contents.embedded_texts(),
        pairs=contents.folder_pairs(*pairs) if pairs else contents.embedded_pairs(),
        seen=of_training[0],
        unseen=of_training[1],
    )
    for option, of_kind in (("--images", kinds.images), ("--texts", kinds.texts)):
        names = [one.name for one in of_kind]
        if len(set(names)) < len(names):
            raise MirError(f"two folders of {option} have the same name ({', '.join(names)}); rename one.")
    return kinds


def _whole_numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise MirError(f"--sizes is {text!r}; expected whole numbers, separated by commas.") from error
    if not found or min(found) < 1:
        raise MirError(f"--sizes is {text!r}; expected numbers from 1 on.")
    return found
