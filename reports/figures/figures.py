"""Figures of a report as PNG and SVG: MIR against scores, gaps over layers, MIR along training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import Board, BoardRow
from mir_plugin.reports.figures.scatter import score_figure, scores_figure
from mir_plugin.reports.figures.style import (
    DASHES,
    MARKERS,
    STYLE,
    legend_beside,
    legend_label,
    new_figure,
    save,
)
from mir_plugin.reports.view.series import LAYER_METRICS, PALETTE, main_scope
from mir_plugin.reports.view.training import TrainingRun, training_quantities, training_runs

ROOM_FOR_EVERY_TICK = 4  # largest ÷ smallest value of a log axis


def write_figures(board: Board, folder: Path) -> Path | None:
    """Write every figure that the board has data for; the same board gives the same files. None without any.

    A figure shows one cohort, the one that it has most to show of: MIR values of different cohorts must not share an
    axis. Figures of an earlier report that this board has no data for are removed.
    """
    n_drawn = 0
    for name, draw in FIGURES:
        with matplotlib.rc_context(STYLE):
            figure = draw(board)
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save(figure, folder / name)
            n_drawn += 1
            continue
        for suffix in (".png", ".svg"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    if n_drawn == 0:
        with contextlib.suppress(OSError):  # it is not there, or holds something of the user's
            folder.rmdir()
        return None
    return folder


def layers_figure(board: Board) -> Figure | None:
    """Distance over layers, one line for each of the first checkpoints of the leaderboard; None without layers."""
    scope = main_scope(board, lambda row: bool(row.layers))
    if scope is None:
        return None
    with_layers = [row for row in scope.rows if row.layers]
    rows, which = _with_room(with_layers)
    metric = LAYER_METRICS[0]
    note = f"{which}: {len(rows)} of {len(with_layers)} checkpoints." if which else ""
    figure = new_figure(board, scope.key, 6.4, 3.8, note)
    axes = figure.subplots()
    curves = [[math.nan if (v := metric.value(layer)) is None else v for layer in row.layers] for row in rows]
    for place, (row, curve) in enumerate(zip(rows, curves, strict=True)):
        axes.plot(
            [layer.layer for layer in row.layers],
            curve,
            color=PALETTE[place],
            linestyle=DASHES[place % len(DASHES)],
            linewidth=1.7,
            label=legend_label(row.name),
        )
    if min(map(min, curves)) > 0:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        tick_text = FuncFormatter(_log_tick if high > ROOM_FOR_EVERY_TICK * low else lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(tick_text)
        axes.yaxis.set_minor_formatter(tick_text)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Layer")
    axes.set_ylabel(metric.label)
    legend_beside(axes)
    return figure


def _with_room(rows: Sequence[BoardRow]) -> tuple[list[BoardRow], str]:
    """As many rows as there are colours, and which: the best and the last of each run, else the first."""
    if len(rows) <= len(PALETTE):
        return list(rows), ""
    chosen: dict[str, BoardRow] = {}
    for run in dict.fromkeys(row.run for row in rows if row.run):
        members = [row for row in rows if row.run == run]
        for row in (members[0], max(members, key=lambda row: row.step or 0)):
            chosen[row.identity] = row
    if 1 < len(chosen) <= len(PALETTE):
        return list(chosen.values()), "The lowest MIR and the last step of each run"
    return list(rows[: len(PALETTE)]), "The first"


def _log_tick(value: float, _: int | None) -> str:
    """Plain numbers beside the ticks 1, 2, 3, 5, 10 …; between them there is no room."""
    text = f"{value:g}"
    return text if text.strip("0.")[:1] in tuple("1235") and len(text.strip("0.")) == 1 else ""


def training_figure(board: Board) -> Figure | None:
    """MIR, the main score and the training loss over training steps, one panel each; None without steps."""
    runs = training_runs(board)
    if not runs:
        return None
    quantities = training_quantities(board, runs)
    has_intervals = any(row.mir_interval for run in runs for row in run.rows)
    note = f"{'Band' if len(runs) == 1 else 'Bars'}: 95 % interval of MIR over samples." if has_intervals else ""
    figure = new_figure(board, runs[0].rows[0].cohort, 6.4, 1.1 + 1.75 * len(quantities), note)
    panels = list(figure.subplots(len(quantities), 1, sharex=True, squeeze=False).flat)
    for axes, (key, label) in zip(panels, quantities, strict=True):
        for place, run in enumerate(runs):
            axes.plot(
                *run.values(key),
                color=PALETTE[place],
                marker=MARKERS[place],
                linestyle=DASHES[place % len(DASHES)],
                markersize=4.5,
                linewidth=1.5,
                label=legend_label(run.label),
            )
        axes.set_ylabel(storable(label))
    for place, run in enumerate(runs):
        _draw_mir_intervals(panels[0], run, PALETTE[place], alone=len(runs) == 1)
    panels[-1].set_xlabel("Training step")
    figure.align_ylabels(panels)
    if len(runs) > 1:
        legend_beside(panels[0])
    return figure


def _draw_mir_intervals(axes: Axes, run: TrainingRun, colour: str, *, alone: bool) -> None:
    """A band for one run; bars for several, whose bands would cover each other."""
    measured = [(row.step or 0, *row.mir_interval) for row in run.rows if row.mir_interval]
    if measured:
        steps, low, high = zip(*measured, strict=True)
        if alone:
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.vlines(steps, low, high, color=colour, alpha=0.35, linewidth=1.2, zorder=1)


FIGURES: tuple[tuple[str, Callable[[Board], Figure | None]], ...] = (
    ("mir-vs-score", score_figure),
    ("mir-vs-scores", scores_figure),
    ("layers", layers_figure),
    ("training-steps", training_figure),
)
