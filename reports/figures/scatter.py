"""MIR against scores as figures: points by group, the fitted line with its 95 % band, names where they fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.figures.style import (
    MARKERS,
    MUTED,
    legend_beside,
    legend_label,
    new_figure,
)
from mir_plugin.reports.view.series import (
    PALETTE,
    Scatter,
    main_column,
    main_scope,
    scatter,
    score_columns,
)
from mir_plugin.reports.view.tables import display

N_NAMED = 16  # points; with more, names cover each other
N_PANELS = 12
MIN_POINTS = 2  # one point says nothing about two quantities
PLACES = (  # of a name around its point: offset in points, horizontal and vertical alignment
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 5, "center", "bottom"),
    (0, -5, "center", "top"),
    (4, 4, "left", "bottom"),
    (4, -4, "left", "top"),
    (-4, 4, "right", "bottom"),
    (-4, -4, "right", "top"),
)
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def score_figure(board: Board) -> Figure | None:
    """MIR against the main score, large, of the cohort with most points; None with fewer than two points."""
    key, scope = main_column(board), main_scope(board)
    if key is None or scope is None or len(scatter(scope, key).rows) < MIN_POINTS:
        return None
    figure = new_figure(board, scope.key, 6.4, 4.2)
    axes = figure.subplots()
    points = scatter(scope, key)
    places = _places(board)
    _draw_points(axes, points, places, size=42)
    _draw_line(axes, points)
    axes.set_xlabel("MIR (lower is better)")
    axes.set_ylabel(storable(dict(score_columns(board))[key]))
    for row, score in zip(points.rows, points.score, strict=True):
        if row.mir_interval:
            axes.plot(row.mir_interval, [score, score], color=MUTED, linewidth=0.9, alpha=0.6, zorder=2)
    if len(places) > 1:
        legend_beside(axes)
    if len(points.rows) <= N_NAMED:
        _name_points(figure, axes, points)
    return figure


def scores_figure(board: Board) -> Figure | None:
    """MIR against every score of the cohort with most points, as small panels; None for fewer than two scores."""
    scope = main_scope(board)
    if scope is None:
        return None
    drawn = [(key, label) for key, label in score_columns(board) if len(scatter(scope, key).rows) >= MIN_POINTS]
    columns = drawn[:N_PANELS]
    if len(columns) < 2:
        return None
    across = min(4, len(columns))
    down = math.ceil(len(columns) / across)
    note = f"{len(columns)} of {len(drawn)} scores." if len(drawn) > len(columns) else ""
    figure = new_figure(board, scope.key, 2.5 * across, 2.2 * down + 0.5, note)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    places = _places(board)
    rho = {c.benchmark: c.spearman.value for c in board.correlations if c.scope == scope.key}
    for (key, label), axes in zip(columns, panels, strict=False):  # the last row may not be full
        points = scatter(scope, key)
        _draw_points(axes, points, places, size=16)
        _draw_line(axes, points)
        found = "" if rho.get(key) is None else f"ρ = {display(rho[key], '0.00')}, "
        axes.set_title(f"{storable(label)}\n{found}n = {len(points.rows)}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("MIR", fontsize=7)
        axes.locator_params(nbins=4)  # small panels have room for few, and laying them out takes most of the time
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    if len(places) > 1:
        entries = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3)
    return figure


def _places(board: Board) -> dict[str, int]:
    """Group, or training run → place in palette and markers, the same in all panels."""
    scope = main_scope(board)
    groups = sorted({row.series for row in scope.rows if row.mir is not None and row.scores}) if scope else []
    return {group: place for place, group in enumerate(groups)}


def _draw_points(axes: Axes, points: Scatter, places: Mapping[str, int], size: float) -> None:
    for group, place in places.items():
        chosen = [index for index, row in enumerate(points.rows) if row.series == group]
        if chosen:
            axes.scatter(
                [points.mir[index] for index in chosen],
                [points.score[index] for index in chosen],
                s=size,
                color=PALETTE[place % len(PALETTE)],
                marker=MARKERS[place % len(MARKERS)],
                edgecolors="white",
                linewidths=0.6,
                zorder=3,
                label=legend_label(group),
            )


def _draw_line(axes: Axes, points: Scatter) -> None:
    if points.line is None:
        return
    limits = axes.get_ylim()
    x = np.linspace(points.line.x_low, points.line.x_high, 60)
    middle, half = points.line.at(x), points.line.half_width(x)
    axes.fill_between(x, middle - half, middle + half, color=MUTED, alpha=0.15, linewidth=0, zorder=1)
    axes.plot(x, middle, color=MUTED, linewidth=1.4, zorder=2)
    axes.set_ylim(*limits)  # a wide band of few points must not squeeze them


def _name_points(figure: Figure, axes: Axes, points: Scatter) -> None:
    """Names beside the points, each at the first place where it covers nothing, or left out."""
    figure.draw_without_rendering()  # places are known in pixels only after the layout
    frame = axes.get_window_extent()
    taken = _point_boxes(axes, points)
    for row, x, y in zip(points.rows, points.mir, points.score, strict=True):
        for dx, dy, across, up in PLACES:
            text = axes.annotate(
                storable(row.name), (x, y), (dx, dy), textcoords="offset points", ha=across, va=up,
                fontsize=7, color=MUTED, zorder=4,
            )  # fmt: skip
            box = text.get_window_extent().extents
            if (
                frame.containsx(box[0])
                and frame.containsx(box[2])
                and _is_free((box[0], box[1], box[2], box[3]), taken)
            ):
                taken.append((box[0], box[1], box[2], box[3]))
                break
            text.remove()


def _point_boxes(axes: Axes, points: Scatter) -> list[Box]:
    """What names must not cover: points and their intervals."""
    boxes = []
    for row, x, y in zip(points.rows, points.mir, points.score, strict=True):
        low, high = row.mir_interval or (x, x)
        (left, middle), (right, _), (centre, _) = axes.transData.transform([(low, y), (high, y), (x, y)])
        boxes += [(centre - 5, middle - 5, centre + 5, middle + 5), (left, middle - 1, right, middle + 1)]
    return boxes


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    left, bottom, right, top = box
    return all(left >= other[2] or right <= other[0] or bottom >= other[3] or top <= other[1] for other in taken)
