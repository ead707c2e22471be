"""The figure of a robustness study: MIR under every condition, and over the number of samples."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.figures.style import (
    DASHES,
    INK,
    MARKERS,
    MUTED,
    STYLE,
    legend_label,
    save,
)
from mir_plugin.reports.view.series import PALETTE
from mir_plugin.robustness.results import NUMBER, STUDIES, Robustness

NAME = "robustness"


def write_robustness_figure(found: Robustness, folder: Path) -> tuple[Path, Path]:
    """Write robustness.png and .svg; the same report gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = robustness_figure(found)
    save(figure, folder / NAME)
    return folder / f"{NAME}.png", folder / f"{NAME}.svg"


def robustness_figure(found: Robustness) -> Figure:
    """Conditions on the left, one row each under the name of their study; numbers of samples on the right."""
    labels = _row_labels(found)
    has_numbers = bool(found.choices)
    figure = Figure(figsize=(10.0 if has_numbers else 6.4, max(3.4, 0.9 + 0.235 * len(labels))), layout="constrained")
    panels = figure.subplots(1, 1 + has_numbers, squeeze=False, width_ratios=[1.15, 1][: 1 + has_numbers])[0]
    _draw_conditions(panels[0], found, labels)
    if has_numbers:
        _draw_numbers(panels[1], found)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, max(1, len(names))))
    figure.supxlabel(
        f"{found.n_samples} samples under every condition; bars: 95 % interval over samples. Lower MIR is better.",
        fontsize=7,
        color=MUTED,
    )
    return figure


def _row_labels(found: Robustness) -> list[tuple[str, str]]:
    """(study, condition) from top to bottom; a study's heading has no condition."""
    labels: list[tuple[str, str]] = []
    only_number = {one.study for one in found.conditions} == {NUMBER}
    for study in STUDIES:
        conditions = dict.fromkeys(one.condition for one in found.conditions if one.study == study)
        if conditions and (study != NUMBER or only_number):
            labels += [(study, ""), *((study, condition) for condition in conditions)]
    return labels


def _draw_conditions(axes: Axes, found: Robustness, labels: list[tuple[str, str]]) -> None:
    places = {label: -row for row, label in enumerate(labels)}
    for index, name in enumerate(found.checkpoints):
        shift = 0.18 * (index - (len(found.checkpoints) - 1) / 2)
        rows = [one for one in found.conditions if one.checkpoint == name and (one.study, one.condition) in places]
        heights = [places[one.study, one.condition] - shift for one in rows]
        errors = [[one.mir - (one.low or one.mir) for one in rows], [(one.high or one.mir) - one.mir for one in rows]]
        axes.errorbar(
            [one.mir for one in rows],
            heights,
            xerr=errors,
            fmt=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            markersize=4.5,
            elinewidth=1,
            label=legend_label(name),
        )
    for index, (name, value) in enumerate(found.against.items()):
        style = DASHES[1 + index % (len(DASHES) - 1)]
        axes.axvline(value, color=MUTED, linewidth=1, linestyle=style, label=legend_label(Path(name).name))
    axes.set_yticks(
        list(places.values()), [storable(condition or STUDIES.get(study, study)) for study, condition in labels]
    )
    for tick, (_, condition) in zip(axes.get_yticklabels(), labels, strict=True):
        if not condition:
            tick.set_fontweight("bold")
            tick.set_color(INK)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-len(labels) + 0.4, 0.6)
    axes.set_xlabel("MIR")


def _draw_numbers(axes: Axes, found: Robustness) -> None:
    rows = found.number_rows()
    for index, name in enumerate(found.checkpoints):
        of_checkpoint = [row for row in rows if row.checkpoint == name]
        numbers = [row.n_samples for row in of_checkpoint]
        colour = PALETTE[index % len(PALETTE)]
        axes.fill_between(
            numbers,
            [row.low for row in of_checkpoint],
            [row.high for row in of_checkpoint],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(
            numbers,
            [row.mean for row in of_checkpoint],
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            linestyle=DASHES[index % len(DASHES)],
            markersize=4,
            linewidth=1.5,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({row.n_samples for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("Number of samples")
    axes.set_ylabel("MIR: mean and range over choices")
