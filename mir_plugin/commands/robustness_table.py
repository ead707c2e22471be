"""How a robustness report looks in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mir_plugin.commands.terminal import escape
from mir_plugin.robustness.results import (
    NUMBER,
    STUDIES,
    ConditionResult,
    NumberRow,
    Robustness,
)

OUTCOME_STYLES = {
    "robust": "bold green",
    "order kept": "bold cyan",
    "unclear": "bold yellow",
    "not robust": "bold red",
}
CONDITION_WIDTH, VALUE_WIDTH = 20, 14


def print_robustness(report: Robustness, paths: Sequence[Path]) -> None:
    """Print conditions, numbers of samples, verdicts and what was written, to standard output."""
    console = Console(highlight=False)
    console.print(
        f"MIR on {report.n_samples} samples, ± half of its 95 % interval; lower is better. Tokens: vision/text",
        soft_wrap=True,
    )
    for study in STUDIES:
        conditions = [one for one in report.conditions if one.study == study]
        if conditions and study != NUMBER:
            console.print(_conditions(STUDIES[study], conditions))
    orders = report.orders_by_number() if len(report.checkpoints) > 1 else {}
    for name in report.checkpoints:
        rows = [row for row in report.number_rows() if row.checkpoint == name]
        if rows:
            console.print(_numbers(f"{STUDIES[NUMBER]}: {name}", rows, orders))
    for verdict in report.verdicts:
        style = OUTCOME_STYLES.get(verdict.outcome, "bold")
        console.print(f"[{style}]{escape(verdict.outcome)}[/]  {escape(verdict.sentence)}", soft_wrap=True)
    for study, reason in report.skipped.items():
        console.print(
            f"[yellow]left out[/yellow]  {escape(STUDIES.get(study, study))}: {escape(reason)}", soft_wrap=True
        )
    for note in report.notes:
        console.print(f"[yellow]note[/yellow]  {escape(note)}", soft_wrap=True)
    for path in paths:
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _conditions(title: str, results: Sequence[ConditionResult]) -> Table:
    """A row for each condition, a column for each checkpoint."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("condition", overflow="fold", min_width=CONDITION_WIDTH)
    for name in dict.fromkeys(one.checkpoint for one in results):
        table.add_column(escape(name), justify="right", overflow="fold", min_width=VALUE_WIDTH)
    table.add_column("tokens", justify="right", no_wrap=True)
    for condition in dict.fromkeys(one.condition for one in results):
        of_condition = [one for one in results if one.condition == condition]
        table.add_row(
            escape(condition),
            *(f"{one.mir:.4f}" + ("" if one.high is None else f" ±{one.high - one.mir:.3f}") for one in of_condition),
            f"{of_condition[0].n_vision_tokens}/{of_condition[0].n_text_tokens}",
        )
    return table


def _numbers(title: str, rows: Sequence[NumberRow], orders: Mapping[int, tuple[int, int]]) -> Table:
    """The paper's Table 6, and how far the mean is from the value on all samples.

    With several checkpoints also how many choices keep the order that all samples give them.
    """
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    headings = ("samples", "choices", "mean", "range", "std", "bias", *(["order"] if orders else []))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        n_same, n = orders.get(row.n_samples, (0, 0))
        table.add_row(
            str(row.n_samples),
            str(row.n_choices),
            f"{row.mean:.4f}",
            f"{row.low:.4f} … {row.high:.4f}",
            "" if row.deviation is None else f"{row.deviation:.4f}",
            f"{row.bias:+.4f}",
            *([f"{n_same} of {n}"] if orders else []),
        )
    return table
