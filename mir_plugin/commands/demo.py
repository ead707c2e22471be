"""``mir demo``: the main job on what ships with the package."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mir_plugin.errors import MirError


def demo(
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("demo-out"),
) -> None:
    """Measure two micro checkpoints with lmms-eval, MIR beside a small benchmark, and join both in a workbook.

    Needs no network and no weights: an early and a late checkpoint of a tiny LLaVA, trained on handwritten digits, are
    measured. Takes a few minutes, mostly for starting lmms-eval.
    """
    from mir_plugin.commands.report import print_report
    from mir_plugin.reports.board.config import ReportConfig
    from mir_plugin.reports.build import build_report
    from mir_plugin.samples.embedded import micro_checkpoints

    results_dir = out / "results"
    for checkpoint in micro_checkpoints():
        _evaluate(checkpoint, results_dir)
    config = ReportConfig().averaging("mir_digits")  # the only benchmark there is
    print_report(build_report([str(results_dir)], out / "report", config))
    typer.echo(
        "Both checkpoints now have MIR and a benchmark score. In this miniature MIR rises while answers get better,\n"
        "the opposite of what the paper found for 7B models; see examples/replication/RESULTS.md."
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
    command = [sys.executable, "-m", "mir_plugin.tasks.lmms_eval.alias", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise MirError(f"lmms_eval failed on {checkpoint}; its messages are above.")
