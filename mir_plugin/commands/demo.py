"""``mir demo``: the main job, or the paper's main experiment in miniature, on what ships with the package."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.errors import MirError

REPLICATION = "Replication"


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and report; default demo-out, or replication-out.")
    ] = None,
    replicate: Annotated[
        bool,
        typer.Option(
            "--replicate",
            help="Replicate the paper's studies on a tiny LLaVA; a quarter of an hour. Continues where it was killed.",
            rich_help_panel=REPLICATION,
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="How often, with other random numbers.", rich_help_panel=REPLICATION)
    ] = 3,
    processes: Annotated[
        int, typer.Option(min=1, help="Side by side, one thread each.", rich_help_panel=REPLICATION)
    ] = 2,
) -> None:
    """Measure two micro checkpoints with lmms-eval, MIR beside a small benchmark, and join both in a workbook.

    Needs no network and no weights: an early and a late checkpoint of a tiny LLaVA, trained on handwritten digits, are
    measured here and now. Takes some minutes, most of them lmms-eval's own start-up.

    With --replicate: pre-train its projector in ten ways, measure every checkpoint, fine-tune all alike, score them
    with lmms-eval, and say how far MIR and each rival order them. Writes RESULTS.md with a picture, and the joint
    report.
    """
    if replicate:
        _replicate(out or Path("replication-out"), seeds, processes)
    else:
        _demonstrate(out or Path("demo-out"))


def _demonstrate(out: Path) -> None:
    from mir_plugin.commands.report import print_report
    from mir_plugin.embedded import micro_checkpoints
    from mir_plugin.reports.build import build_report

    results_dir = out / "results"
    for checkpoint in micro_checkpoints():
        _evaluate(checkpoint, results_dir)
    print_report(build_report([str(results_dir)], out / "report"))
    typer.echo(
        "What these two numbers say is that the line works. In this miniature MIR rises while answers get better, the\n"
        "opposite of what the paper found for 7B models; examples/replication/RESULTS.md looks into it."
    )


def _evaluate(checkpoint: Path, results_dir: Path) -> None:
    """Run lmms-eval as a user would, in a process of its own, and show the command."""
    arguments = [
        "--model", "mir_hf",
        "--model_args", f"pretrained={checkpoint},device=cpu,mir_samples=embedded",
        "--tasks", "mir,mir_digits",
        "--batch_size", "16",
        "--output_path", str(results_dir),
    ]  # fmt: skip
    typer.echo(f"$ lmms_eval {shlex.join(arguments)}")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mir_plugin.tasks.lmms_eval_alias", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise MirError(f"lmms_eval failed on {checkpoint}; its messages are above.")


def _replicate(out: Path, n_seeds: int, n_processes: int) -> None:
    from mir_plugin.output import write_atomically
    from mir_plugin.replication.findings import relations
    from mir_plugin.replication.joint_report import write_report
    from mir_plugin.replication.picture import write_picture
    from mir_plugin.replication.replicate import replicate
    from mir_plugin.replication.results_page import PICTURE_NAME, results_page

    replication = replicate(out, n_seeds=n_seeds, n_processes=n_processes, tell=typer.echo)
    found = relations(replication.outcomes)
    page = results_page(replication, found)
    write_atomically(out / "RESULTS.md", page)
    write_picture(replication, found, out / PICTURE_NAME)
    files = write_report(replication, out)
    conclusions = page.partition("## What came out\n\n")[2].partition("\n\n")[0]
    typer.echo(f"\n{conclusions}\n")
    for path in (out / "RESULTS.md", out / PICTURE_NAME, *files.paths.values()):
        typer.echo(f"wrote {path}")
