"""Shows a sweep: a live table in a terminal, plain lines elsewhere, and the verdict at the end."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mir_plugin.commands.terminal import CLOSE, NAME_WIDTH, escape
from mir_plugin.engine.progress import duration
from mir_plugin.errors import MirError
from mir_plugin.results import PARTIAL_NAME
from mir_plugin.selection.select import Outcome, Selection
from mir_plugin.selection.sweep import Sweep, SweepEntry

if TYPE_CHECKING:
    from mir_plugin.selection.dry_run import SweepPlan

OUTCOME_STYLES: dict[Outcome, str] = {"clear": "bold green", "undecided": "bold yellow", "still falling": "bold cyan"}
STATE_STYLES = {"failed": "red", "running": "cyan", "waiting": "dim", "measured": "", "kept": "dim"}
# A terminal has few lines: before and after these, rows of a long sweep are counted instead of shown.
MAX_LIVE_ROWS = 20


class SweepDisplay:
    """Shows a sweep on standard error while it runs."""

    def __init__(self, *, shown: bool, watching: bool = False) -> None:
        # The stream itself: a console that looks up sys.stderr would write into its replacement below.
        self._console = Console(file=sys.stderr, quiet=not shown)
        self._watching = watching
        self._live: Live | None = None
        self._sweep: Sweep | None = None
        self._printed: dict[str, SweepEntry] = {}
        self._started: dict[str, float] = {}

    @contextmanager
    def of(self, sweep: Sweep) -> Iterator[None]:
        """Show this sweep for the length of the block."""
        self._sweep = sweep
        if not self._console.is_terminal or self._console.quiet:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, transient=True, redirect_stderr=False) as live:
            self._live = live
            with redirect_stderr(_AboveTheTable(live.console)):
                yield
            self._live = None

    def refresh(self) -> None:
        """Show the present state; without a terminal, a line for each checkpoint that is finished."""
        if self._live is not None:
            self._live.refresh()
            return
        asked = [one for one in self._entries() if one.asked]
        for number, entry in enumerate(asked, start=1):
            if entry.is_done and self._printed.get(entry.name) is not entry:
                self._printed[entry.name] = entry
                line = _line(entry, number, len(asked)) + self._time_left()
                self._console.print(line, soft_wrap=True, highlight=False)

    def announce(self) -> None:
        """Say at the start what is known from earlier results: how long it takes, and how much memory."""
        from mir_plugin.selection.dry_run import known_cost

        cost = known_cost(self._sweep) if self._sweep else None
        n = sum(not one.is_done and one.result is None for one in self._entries())
        if cost and n:
            told = f"{n} checkpoint{'s' * (n > 1)} to measure{self._time_left()}; {cost.memory} (from {cost.basis})"
            self._console.print(escape(told), soft_wrap=True, highlight=False)

    def _entries(self) -> list[SweepEntry]:
        return self._sweep.entries if self._sweep else []

    def _time_left(self) -> str:
        """Of what waits, as the end of a line."""
        waiting = any(not one.is_done for one in self._entries())
        seconds = self._sweep.seconds_left() if self._sweep and waiting else None
        return "" if seconds is None else f"; about {duration(seconds)} left"

    def _table(self) -> Group:
        entries = self._entries()
        n_done = sum(one.is_done for one in entries)
        current = next((i for i, one in enumerate(entries) if one.state == "running"), len(entries))
        first = max(0, min(current - MAX_LIVE_ROWS // 2, len(entries) - MAX_LIVE_ROWS))
        shown = entries[first : first + MAX_LIVE_ROWS]
        hidden = len(entries) - len(shown)
        summary = (
            f"{n_done} of {len(entries)} checkpoints" + (f", {hidden} not shown" if hidden else "") + self._time_left()
        )
        if self._watching and n_done == len(entries):
            summary += "; waiting for more" if entries else "waiting for the first checkpoint"
        notes = {one.name: self._running_note(one) for one in shown if one.state == "running"}
        self._started = {name: started for name, started in self._started.items() if name in notes}
        table = sweep_table(shown, entries, notes)
        return Group(table, Text(summary, style="dim"))

    def _running_note(self, entry: SweepEntry) -> str:
        """Seconds, and the layers that the journal of the measurement holds."""
        started = self._started.setdefault(entry.name, time.monotonic())
        seconds = f"{time.monotonic() - started:.0f} s"
        assert self._sweep is not None
        journal = self._sweep.out_dir / entry.name / PARTIAL_NAME
        try:
            n_layers = journal.read_bytes().count(b"\n") - 1
        except OSError:
            return f"{seconds}, loading"
        return f"{seconds}, {n_layers} layers"


def print_sweep(sweep: Sweep, report_paths: Sequence[Path]) -> None:
    """Print the finished table, what failed, the verdict, and where the files are, to standard output."""
    console = Console(highlight=False)
    console.print(sweep_table(sweep.entries, sweep.entries))
    for one in sweep.entries:
        if one.error:
            console.print(f"[red]failed:[/red] {escape(one.name)}: {escape(one.error)}", soft_wrap=True)
    try:
        selection = sweep.selection()
    except MirError as error:
        console.print(f"[yellow]no verdict:[/yellow] {escape(str(error))}", soft_wrap=True)
    else:
        if selection is not None:
            print_verdict(selection)
    for path in (sweep.out_dir / "sweep.json", sweep.out_dir / "sweep.csv", *report_paths):
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)


def print_plan(plan: SweepPlan) -> None:
    """Print what a sweep would do to standard output."""
    console = Console(highlight=False)
    for one in plan.checkpoints:
        console.print(f"{escape(one.name)}: {escape(one.what)}", soft_wrap=True)
    n = len(plan.checkpoints)
    console.print(f"[bold]{plan.n_to_measure} of {n} checkpoint{'s' * (n > 1)} to measure[/bold]")
    if plan.cost:
        each, total = duration(plan.cost.seconds), duration(plan.seconds)
        about = "up to about" if plan.at_most else "about"
        console.print(
            f"time    {about} {total} on one device ({each} each), from {escape(plan.cost.basis)}",
            soft_wrap=True,
        )
        console.print(f"memory  {escape(plan.cost.memory)}", soft_wrap=True)


def print_verdict(selection: Selection) -> None:
    """Print recommendation, reasons and warnings to standard output."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[{OUTCOME_STYLES[selection.outcome]}]{escape(selection.sentence)}[/]")
    for reason in selection.reasons:
        console.print(f"  - {escape(reason)}")
    for warning in selection.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")


def sweep_table(
    shown: Sequence[SweepEntry], entries: Sequence[SweepEntry], notes: Mapping[str, str] | None = None
) -> Table:
    """A row for each entry shown; the lowest MIR of all entries is marked.

    Args:
        notes: how far measurements are, by the names of running entries.
    """
    results = [one.result for one in entries if one.result]
    by_steps = any(result.planned for result in results)
    most = max((result.n_samples for result in results), default=0)  # fewer samples make other values
    lowest = min((result.mir for result in results if result.n_samples == most), default=None)
    table = Table(
        box=SIMPLE_HEAD, title="MIR of a sweep (lower is better; * the lowest)", title_justify="left", padding=CLOSE
    )
    table.add_column("checkpoint", overflow="fold", min_width=NAME_WIDTH)
    headings = ["step", *["samples"] * by_steps, "MIR", "95 % interval", "seconds"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for one in shown:
        result = one.result
        best = result is not None and (result.mir, result.n_samples) == (lowest, most)
        table.add_row(
            escape(one.name),
            "" if one.step is None else str(one.step),
            *["" if result is None else str(result.n_samples)] * by_steps,
            "" if result is None else f"{result.mir:.4f}",
            (notes or {}).get(one.name, "") if one.state == "running" else _interval(one),
            "" if one.seconds is None else f"{one.seconds:.1f}",
            one.state + (" *" if best else ""),
            style="bold" if best else STATE_STYLES[one.state],
        )
    return table


def _interval(entry: SweepEntry) -> str:
    spread = entry.result.uncertainty if entry.result else {}
    return f"{spread['low']:.4f} … {spread['high']:.4f}" if "low" in spread else ""


def _line(entry: SweepEntry, number: int, n_entries: int) -> str:
    outcome = f"MIR {entry.result.mir:.4f}" if entry.result else escape(str(entry.error))
    if entry.result and entry.result.planned:
        outcome += f" on {entry.result.n_samples} samples"
    seconds = "" if entry.seconds is None else f", {entry.seconds:.1f} s"
    return f"{number}/{n_entries} {escape(entry.name)}: {entry.state}{seconds}: {outcome}"


class _AboveTheTable(io.TextIOBase):
    """Standard error while the table is live: whole lines go above it, and progress bars see no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(line.rpartition("\r")[2], markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def isatty(self) -> bool:
        return False
