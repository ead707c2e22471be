"""``mir inspect``: what a checkpoint is made of, and how to load it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mir_plugin.commands import options
from mir_plugin.files.outside_text import on_a_line
from mir_plugin.model_adapters import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from rich.console import Console


def inspect(checkpoint: options.Checkpoint, load: options.Parts) -> None:
    """Show the parts of a checkpoint, what loading would use, and the commands that measure it. Reads no weights.

    First what configs and headers tell; then, some seconds later, whether the checkpoint goes through all that
    `mir run` does before it reads weights. A missing part is named with the option that supplies it, and the exit code
    is 1. A part given by a hub name is downloaded first, weights included, unless it is in the hub's cache.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)  # a path may hold [b] or :cat:
    opened = open_checkpoint(checkpoint, load)
    facts = {"checkpoint": str(checkpoint), "family": opened.spec.name, **opened.inspect()}
    width = max(map(len, facts))
    _print(facts, console, width)
    with Console(stderr=True).status("going through what `mir run` does before it reads weights"):
        more = opened.check()
    _print(more, console, width)
    console.print()
    for line in measuring_lines(opened):
        console.print(on_a_line(line), soft_wrap=True)


def _print(facts: Mapping[str, str], console: Console, width: int) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    for heading, text in facts.items():
        table.add_row(heading, on_a_line(text))
    if facts:
        console.print(table)


def measuring_lines(checkpoint: Checkpoint) -> tuple[str, str]:
    """What to type into a shell to measure the checkpoint: alone, and beside benchmarks in lmms-eval."""
    given = {
        field.name: getattr(checkpoint.options, field.name)
        for field in dataclasses.fields(checkpoint.options)
        if getattr(checkpoint.options, field.name) != field.default
    }
    arguments = [part for name, value in given.items() for part in _option(name.replace("_", "-"), value)]
    model = "mir_hf" if checkpoint.spec.name == "huggingface" else "mir_llava"
    model_args = ",".join(f"{name}={value}" for name, value in {"pretrained": checkpoint.name, **given}.items())
    host = ["--model", model, "--model_args", model_args, "--tasks", "mir,mmstar", "--output_path", "out/"]
    return shlex.join(["mir", "run", str(checkpoint.name), *arguments]), shlex.join(["lmms_eval", *host])


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
