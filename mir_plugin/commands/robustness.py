"""``mir robustness``: how much MIR depends on the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.errors import MirError

STUDIES = "Studies"
DEFAULT_SAMPLES = 100


def robustness(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoint folders; with several, their order is compared too.")
    ],
    load: options.Load,
    protocol: options.Protocol,
    batch_size: options.BatchSize = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of one kind of images; repeatable. Default: photographs, digits, pages of print.",
            rich_help_panel=options.SAMPLES,
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of one kind of texts; repeatable. Default: prose, code.", rich_help_panel=options.SAMPLES
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
        typer.Option(metavar="IMAGES TEXTS", help="Pairs from the training data.", rich_help_panel=options.SAMPLES),
    ] = None,
    unseen: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="IMAGES TEXTS", help="Similar pairs held out from training.", rich_help_panel=options.SAMPLES
        ),
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
            help="Studies to run, comma-separated.",
            rich_help_panel=STUDIES,
        ),
    ] = "content,template,relevance,exposure,number",
    sizes: Annotated[
        str,
        typer.Option(
            help="Sample counts to try, comma-separated; only those below --n-samples are used.",
            rich_help_panel=STUDIES,
        ),
    ] = "1,2,5,10,20,50,100,200,500,1000",
    repeats: Annotated[
        int, typer.Option(min=1, help="Random choices per sample count, with seeds 0, 1, ….", rich_help_panel=STUDIES)
    ] = 10,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="mir.json of another checkpoint to compare the spread with; repeatable.", rich_help_panel=STUDIES
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report, figure and every measurement.", rich_help_panel=options.OUTPUT)
    ] = Path("mir-robustness"),
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure checkpoints under many conditions, to see how much MIR depends on the samples.

    Studies: content (kinds of images × kinds of texts), template (with and without the conversation around them),
    relevance (text that belongs to the image, or to another), exposure (data seen and not seen in training), number
    (1 to N samples, several choices of each). By default it uses embedded data.

    Existing measurements are kept; all choices of the number study share one run.

    Examples:

      mir robustness CHECKPOINT

      mir robustness runs/a runs/b --images photos --images charts --texts news --texts captions

      mir robustness CHECKPOINT --studies number --sizes 1,10,100 --repeats 20 --against mir-out/other/mir.json
    """
    from mir_plugin.commands.robustness_table import print_robustness
    from mir_plugin.measurement.checkpoint_names import result_name
    from mir_plugin.model_adapters import Checkpoint, open_checkpoint
    from mir_plugin.reports.figures.robustness import write_robustness_figure
    from mir_plugin.reports.workbook.robustness import write_robustness_workbook
    from mir_plugin.results import MirResult
    from mir_plugin.robustness.kinds import chosen_kinds
    from mir_plugin.robustness.results import FILE_NAME
    from mir_plugin.robustness.runs import run_plan
    from mir_plugin.robustness.studies import plan

    names: dict[str, Checkpoint] = {}
    for checkpoint in dict.fromkeys(checkpoints):  # a mistaken name is reported before the first is measured
        names[result_name(checkpoint, names)] = open_checkpoint(checkpoint, load)
    others = [MirResult.load(path) for path in against or []]
    kinds = chosen_kinds(images or (), texts or (), pairs, seen, unseen, checkpoints)
    planned = plan(
        kinds,
        [study.strip() for study in studies.split(",") if study.strip()],
        n_samples or min(DEFAULT_SAMPLES, kinds.fewest),
        seed,
        sizes=_whole_numbers(sizes),
        repeats=repeats,
    )
    outcome = run_plan(planned, names, protocol, out, batch_size=batch_size, against=others, force=force)
    paths = [
        outcome.save(out / FILE_NAME),
        *write_robustness_figure(outcome, out),
        write_robustness_workbook(outcome, out / "robustness.xlsx"),
    ]
    if json:
        typer.echo(outcome.to_json(), nl=False)
    else:
        print_robustness(outcome, paths)


def _whole_numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise MirError(f"--sizes is {text!r}; expected whole numbers, separated by commas.") from error
    if not numbers or min(numbers) < 1:
        raise MirError(f"--sizes is {text!r}; expected positive numbers.")
    return numbers
