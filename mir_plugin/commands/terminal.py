"""Prints results to a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as without_markup
from rich.table import Table

from mir_plugin.files.outside_text import on_a_line
from mir_plugin.results import MirResult
from mir_plugin.selection.comparison import Comparison, Difference
from mir_plugin.selection.ranked import Ranked
from mir_plugin.selection.select import Selection
from mir_plugin.selection.verdict_text import standing


def escape(text: str) -> str:
    """Text from outside for rich: no control characters, on one line, and nothing in it is markup.

    Everything that a command prints of names, paths, files and errors goes through here.
    """
    return without_markup(on_a_line(text))


# A name that is folded after every third letter cannot be read; numbers give way instead. With one space between the
# columns rather than two, all of them fit the 80 characters of a plain terminal, long steps included.
NAME_WIDTH = 20
CLOSE = (0, 1, 0, 0)


def print_result(result: MirResult, saved_to: Path) -> None:
    """Print layers and totals of one measurement to standard output."""
    console = Console()
    table = Table(title=escape(f"MIR of {result.checkpoint}"), title_justify="left", box=SIMPLE_HEAD)
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
    console.print(f"standard error {escape(_standard_error(result))}")
    console.print(f"MIR published  {_range(result)}  where the released script's number lies")
    if result.length_share is not None and result.mir_at_equal_length is not None:
        console.print(
            f"length share   {result.length_share:<6.0%}  of the distance; MIR at equal length "
            f"{result.mir_at_equal_length:.4f}",
            highlight=False,
        )
    for sentence in result.fragile:
        console.print(f"[yellow]fragile:[/yellow] {escape(sentence)}", soft_wrap=True, highlight=False)
    plural = "s" * (result.n_samples > 1)
    console.print(
        f"{result.n_samples} sample{plural}, {last.n_vision_tokens} vision and {last.n_text_tokens} text tokens; "
        f"{escape(result.family)}, {result.engine['path']}, {result.timing['total']:.1f} s",
        escape(f"saved to {saved_to}"),
        sep="\n",
        soft_wrap=True,
    )


def print_comparison(comparison: Comparison) -> None:
    """Print both checkpoints, the layers and the verdict to standard output."""
    console = Console(highlight=False)
    console.print(f"A  {escape(comparison.a)}\nB  {escape(comparison.b)}")
    for difference in comparison.differing:
        console.print(f"[yellow]differs: {escape(difference)}[/yellow]")
    for sentence in comparison.told:
        console.print(escape(sentence), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("layer", "distance A", "distance B", "B − A", "95 % interval"):
        table.add_column(heading, justify="right")
    for number, layer in enumerate(comparison.layers, start=1):
        table.add_row(str(number), f"{layer.a:.4f}", f"{layer.b:.4f}", f"{layer.difference:+.4f}", _interval(layer))
    table.add_section()
    mir = comparison.mir
    table.add_row("MIR", f"{mir.a:.4f}", f"{mir.b:.4f}", f"{mir.difference:+.4f}", _interval(mir))
    console.print(table)
    paired = "paired over the same samples" if comparison.paired else "not paired: the samples differ"
    starred = any(one.distinguishable for one in (*comparison.layers, mir))
    console.print(paired + "; * 0 lies outside the interval" * starred)
    console.print(f"[bold]{escape(comparison.verdict)}[/bold]")
    if comparison.size:
        console.print(escape(comparison.size), soft_wrap=True)


def print_ranking(selection: Selection) -> None:
    """Print the candidates of a selection to standard output: run by run, then the best of each run.

    Where no run has two checkpoints, all stand in one table.
    """
    console = Console()
    of_runs = [run for run in selection.runs if len(run.ranking) > 1]
    if len(selection.runs) == 1 or not of_runs:
        console.print(_ranking("Ranking by MIR (lower is better)", selection.ranking, selection.tolerance))
        return
    for run in of_runs:
        console.print(_ranking(f"{run.run}, by MIR (lower is better)", run.ranking, selection.tolerance))
    console.print(_ranking("The best of each run", [run.best for run in selection.runs], selection.tolerance))


def _ranking(title: str, ranking: Sequence[Ranked], tolerance: float) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=CLOSE)
    table.add_column("", justify="right")
    table.add_column("checkpoint", overflow="fold", min_width=NAME_WIDTH - 5)
    by_steps = any(one.candidate.result.planned for one in ranking)
    headings = ["step", *["samples"] * by_steps, "MIR", "behind the best", ""]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, one in enumerate(ranking, start=1):
        behind = one.behind
        table.add_row(
            str(place),
            escape(one.candidate.name),
            "" if one.candidate.step is None else str(one.candidate.step),
            *[str(one.candidate.result.n_samples)] * by_steps,
            f"{one.candidate.result.mir:.4f}",
            ""
            if behind is None
            else f"{behind.difference:+.4f}" + ("" if behind.low is None else f" ({_bounds(behind)})"),
            "best" if behind is None else standing(one.tied, one.within, tolerance),
        )
    return table


def _bounds(difference: Difference) -> str:
    return f"{difference.low:+.4f} … {difference.high:+.4f}"


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return "not computed"
    return _bounds(difference) + (" *" if difference.distinguishable else "  ")


def _standard_error(result: MirResult) -> str:
    spread = result.uncertainty
    if "standard_error" not in spread:
        return str(spread.get("not_computed", "not computed"))
    return f"{spread['standard_error']:.4f}   (over samples; 95 % interval {spread['low']:.4f} … {spread['high']:.4f})"


def _range(result: MirResult) -> str:
    low, high = (f"{v:.4f}" if v is not None else "none" for v in (result.mir_published, result.mir_published_upper))
    return f"{low} … {high}"
