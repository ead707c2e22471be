"""The studies as the paper draws them, MIR and score over what varies, and how every indicator fared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.replication.findings import Relation
from examples.replication.outcomes import Outcome, of_study
from examples.replication.recipe import STUDIES, Study
from examples.replication.replicate import Replication
from mir_plugin.files.atomic import replacing
from mir_plugin.reports.figures.style import MUTED, STYLE
from mir_plugin.reports.view.series import PALETTE

MIR_COLOUR, SCORE_COLOUR = PALETTE[0], PALETTE[1]
VERDICT_COLOURS = {"yes": PALETTE[2], "no, the opposite": PALETTE[1]}


def write_picture(replication: Replication, relations: Sequence[Relation], path: Path) -> None:
    """A PNG: one panel per study, and one for the rank correlations."""
    outcomes = replication.outcomes
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 10.5), layout="constrained")
        halves: Any = figure.subfigures(2, 1)
        above, below = halves
        for axes, study in zip(above.subplots(2, 2).flat, STUDIES, strict=True):
            _draw_study(axes, study, of_study(study, outcomes, replication.recipe))
        _draw_relations(below.subplots(), relations)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _draw_study(axes: Axes, study: Study, rows: Sequence[Outcome]) -> None:
    """Every seed as a dot, the means as a line; MIR on the left, the score on the right."""
    values = sorted({getattr(one, study.varied) for one in rows})
    right = axes.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    _draw_series(axes, study, rows, values, lambda one: one.indicators["mir"], MIR_COLOUR, "o-")
    _draw_series(right, study, rows, values, lambda one: one.score, SCORE_COLOUR, "s--")
    axes.set_title(f"{study.name} (paper: {study.paper})", fontsize=9)
    axes.set_xlabel(study.axis)
    axes.set_xticks(range(len(values)), [f"{v:g}" if isinstance(v, float) else str(v) for v in values])
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel("MIR (lower is better)", color=MIR_COLOUR)
    right.set_ylabel("% right after fine-tuning", color=SCORE_COLOUR)


def _draw_series(
    axes: Axes,
    study: Study,
    rows: Sequence[Outcome],
    values: Sequence[object],
    number: Callable[[Outcome], float],
    colour: str,
    line: str,
) -> None:
    places = [values.index(getattr(one, study.varied)) for one in rows]
    axes.scatter(places, [number(one) for one in rows], s=10, color=colour, alpha=0.45, linewidths=0)
    means = [mean(number(one) for one in rows if getattr(one, study.varied) == value) for value in values]
    axes.plot(range(len(values)), means, line, color=colour, markersize=4.5, linewidth=1.5)


def _draw_relations(axes: Axes, relations: Sequence[Relation]) -> None:
    """One line for each indicator; the sign is turned so that useful is on the right for all."""
    for place, one in enumerate(relations):
        sign = one.indicator.useful_sign
        if one.rho is None:
            continue
        colour = VERDICT_COLOURS.get(one.verdict, MUTED)
        if one.low is not None and one.high is not None:
            axes.plot([sign * one.low, sign * one.high], [place, place], color=colour, linewidth=2, alpha=0.6)
        axes.plot(sign * one.rho, place, "o", color=colour, markersize=6)
        seeds = [sign * value for value in one.by_seed if value is not None]
        axes.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=9)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(len(relations) - 0.4, -0.6)
    axes.set_yticks(range(len(relations)), [one.indicator.name for one in relations])
    axes.set_xlabel("Spearman's rho with the score, sign turned where low is good; dot: all, ticks: seeds")
    axes.set_title("← orders checkpoints the wrong way round        orders them rightly →", fontsize=9)
