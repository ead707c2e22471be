"""``mir inspect``: what a checkpoint is made of, and how to load it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mir_plugin.measurement import options

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions


def inspect(
    checkpoint: options.Checkpoint,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    merge_lora: options.MergeLora = True,
) -> None:
    """Say what a checkpoint is made of, what loading it would use, and the lines that measure it. Reads no weights.

    A part that is missing is named, with the option that mends it, and the exit code is 1. A part named by a hub name
    is downloaded first, weights included, unless it is in the hub's cache.
    """
    from rich.console import Console
    from rich.table import Table

    from mir_plugin.measurement.loading import load_options
    from mir_plugin.model_adapters import inspect_checkpoint

    chosen = load_options(locals())
    spec, description = inspect_checkpoint(checkpoint, chosen)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("checkpoint", str(checkpoint))
    table.add_row("family", spec.name)
    for heading, text in description.items():
        table.add_row(heading, text)
    console = Console(markup=False, emoji=False, highlight=False)  # a path may hold [b] or :cat:
    console.print(table)
    console.print()
    for line in measuring_lines(checkpoint, chosen, "mir_hf" if spec.name == "huggingface" else "mir_llava"):
        console.print(line, soft_wrap=True)


def measuring_lines(checkpoint: Path, chosen: LoadOptions, model: str) -> tuple[str, str]:
    """What to type into a shell to measure the checkpoint: alone, and beside benchmarks as lmms-eval's ``model``."""
    given = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(chosen)
        if getattr(chosen, field.name) != field.default
    }
    options = [part for name, value in given.items() for part in _option(name.replace("_", "-"), value)]
    model_args = ",".join(f"{name}={value}" for name, value in {"pretrained": checkpoint, **given}.items())
    host = ["--model", model, "--model_args", model_args, "--tasks", "mir,mmstar", "--output_path", "out/"]
    return shlex.join(["mir", "run", str(checkpoint), *options]), shlex.join(["lmms_eval", *host])


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
