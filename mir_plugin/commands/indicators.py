"""``mir indicators``: the indicators that the paper compares MIR with, for one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands import options

if TYPE_CHECKING:
    from mir_plugin.indicators.indicators import Indicators

IN_CONTEXT = "In-context questions"


def indicators(
    checkpoint: options.Checkpoint,
    load: options.LoadWhole,
    samples: options.Samples,
    batch_size: options.BatchSize = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Multiple-choice benchmark, a TSV file in VLMEvalKit's format; default: handwritten digits.",
            rich_help_panel=IN_CONTEXT,
        ),
    ] = None,
    n_questions: Annotated[
        int, typer.Option(min=0, help="Number of questions; 0 skips them.", rich_help_panel=IN_CONTEXT)
    ] = options.N_QUESTIONS,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for indicators.json; default as for `mir run`.", rich_help_panel=options.OUTPUT),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compute the indicators that the paper compares MIR with: losses, in-context answers, MMD, KID, variants of MIR.

    Uses the samples that `mir run` takes with the same options.

    Examples:

      mir indicators runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir indicators CHECKPOINT --questions MMBench_DEV_EN.tsv --n-questions 200
    """
    from mir_plugin.indicators.file import INDICATORS_NAME, require_own, save_indicators
    from mir_plugin.indicators.in_context import about_questions, chosen_questions
    from mir_plugin.indicators.indicators import checkpoint_indicators
    from mir_plugin.measurement.checkpoint_names import result_folder
    from mir_plugin.model_adapters import open_checkpoint

    opened = open_checkpoint(checkpoint, load)  # a mistaken name is reported before samples are fetched
    path = (out or result_folder(checkpoint)) / INDICATORS_NAME
    require_own(path, checkpoint)
    chosen, asked = samples.choose(), chosen_questions(questions, n_questions)
    adapter = opened.load()
    measured = checkpoint_indicators(
        adapter, opened.folder.path, chosen, asked, batch_size=batch_size, seed=samples.seed
    )
    save_indicators(path, measured, adapter, checkpoint, chosen, about_questions(asked, questions, samples.seed))
    if json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        _print(measured, checkpoint, path)


def _print(measured: Indicators, checkpoint: Path, path: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from mir_plugin.commands.terminal import escape
    from mir_plugin.indicators.indicators import DESCRIPTIONS

    console = Console()
    table = Table(title=escape(f"Indicators of {checkpoint}"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("indicator", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("description")
    for name, description in DESCRIPTIONS.items():
        if name in measured.values:
            table.add_row(name, f"{measured.values[name]:.4f}", description)
        else:
            table.add_row(name, "–", escape(f"not computed: {measured.not_computed[name]}"))
    console.print(table)
    console.print(escape(f"saved to {path}"), soft_wrap=True)
