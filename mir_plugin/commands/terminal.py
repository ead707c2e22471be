"""How results look in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mir_plugin.results import MirResult


def print_result(result: MirResult, saved_to: Path) -> None:
    """Print layers and totals of one measurement to standard output."""
    console = Console()
    table = Table(title=f"MIR of {result.checkpoint}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("layer", "distance", "published", "means", "spreads", "norm v/t", "outliers v/t"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in result.layers:
        table.add_row(
            str(layer.layer),
            f"{layer.distance:.4f}",
            f"{layer.distance_published:.4f}",
            f"{layer.mean_term:.4f}",
            f"{layer.trace_vision + layer.trace_text - 2 * layer.trace_term:.4f}",
            f"{layer.norm_ratio:.2f}",
            f"{layer.n_vision_outliers}/{layer.n_text_outliers}",
        )
    console.print(table)
    last = result.layers[-1]
    console.print(f"MIR            [bold]{result.mir:.4f}[/bold]  exact trace term; lower is better")
    console.print(f"MIR published  {_range(result)}  where the released script's number lies")
    console.print(
        f"{result.n_samples} samples, {last.n_vision_tokens} vision and {last.n_text_tokens} text tokens; "
        f"{result.family}, {result.engine['path']}, {result.timing['total']:.1f} s",
        f"saved to {saved_to}",
        sep="\n",
        soft_wrap=True,
    )


def _range(result: MirResult) -> str:
    low, high = (f"{v:.4f}" if v is not None else "none" for v in (result.mir_published, result.mir_published_upper))
    return f"{low} … {high}"
