"""Pictures of a checkpoint's tokens, from their data: tokens in the plane, norms with their thresholds, gap curves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mir_plugin.files.outside_text import storable
from mir_plugin.pictures.data import (
    METHODS,
    NORMS,
    NormHistogram,
    Pictures,
    TokenMap,
)
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.figures.figures import layers_figure
from mir_plugin.reports.figures.style import MUTED, STYLE, save
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.view.series import PALETTE

COLOURS = {"vision": PALETTE[1], "text": PALETTE[0]}
GAPS = "gaps"
PANEL_WIDTH, ACROSS = 2.6, 4
FOOTNOTE_CHARACTERS = 19  # to an inch, at its size


def write_pictures(pictures: Pictures, folder: Path) -> list[Path]:
    """Write every picture as PNG and SVG; the same data give the same files. Returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not strict: the last name is that of the norms, which no method draws.
    for method, name in zip(pictures.methods, pictures.file_names, strict=False):
        save(tokens_figure(pictures, method), folder / name)
    save(norms_figure(pictures), folder / NORMS)
    return [folder / f"{name}.png" for name in pictures.file_names]


def write_gaps(results: Sequence[Path], folder: Path) -> Path | None:
    """Layer distances of several measurements (paths of mir.json) as curves; None if none has layers.

    Of measurements that must not share an axis, only the largest group that may is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = layers_figure(join(read_sources(results), ReportConfig()))
    if figure is None:
        return None
    save(figure, folder / GAPS)
    return folder / f"{GAPS}.png"


def tokens_figure(pictures: Pictures, method: str) -> Figure:
    """Vision and text tokens in the plane, a panel for each layer."""
    with matplotlib.rc_context(STYLE):
        maps = [one for one in pictures.maps if one.method == method]
        figure, panels = _panels(len(maps), 2.75)
        for axes, one in zip(panels, maps, strict=False):  # the last row of panels may not be full
            _draw_map(axes, one)
        _finish(
            figure,
            panels,
            f"{METHODS[method]} of the same tokens at every layer, without that layer's outliers, scaled as MIR scales "
            f"them; {pictures.n_samples} samples, {Path(pictures.checkpoint).name}",
        )
    return figure


def norms_figure(pictures: Pictures) -> Figure:
    """Histograms of the norms of vision and text tokens, a panel for each layer, with the outlier thresholds."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(pictures.layers), 2.5)
        for axes, layer in zip(panels, pictures.layers, strict=False):  # as above
            of_layer = [one for one in pictures.norms if one.layer == layer]
            for one in of_layer:
                _draw_norms(axes, one)
            axes.set_title(_outliers(layer, of_layer), fontsize=8)
            axes.set_xlabel("L2 norm")
            axes.tick_params(labelsize=7)
            if any(one.logarithmic for one in of_layer):
                axes.set_xscale("log")
                # The usual ones are formulas, which stay unset: names may hold dollar signs (figure_style).
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.locator_params(axis="x", nbins=5)
        panels[0].set_ylabel("Share of tokens")
        _finish(
            figure,
            panels,
            "Dashed: thresholds beyond which MIR takes a token for an outlier, in the colour of its modality; "
            f"{pictures.n_samples} samples, {Path(pictures.checkpoint).name}",
        )
    return figure


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    across = min(ACROSS, n)
    down = -(-n // across)
    figure = Figure(figsize=(max(PANEL_WIDTH * across, 4.2), height * down + 0.5), layout="constrained")
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels[n:]:
        axes.set_visible(False)
    return figure, panels


def _finish(figure: Figure, panels: Sequence[Axes], footnote: str) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), markerscale=2.5)
    lines = textwrap.wrap(storable(footnote), int(FOOTNOTE_CHARACTERS * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), fontsize=7, color=MUTED)


def _draw_map(axes: Axes, one: TokenMap) -> None:
    for modality, points in (("vision", one.vision), ("text", one.text)):
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=5,
            color=COLOURS[modality],
            marker="o" if modality == "vision" else "^",
            alpha=0.55,
            linewidths=0,
            label=f"{modality} tokens",
        )
    axes.set_title(f"layer {one.layer}: {len(one.vision)} vision, {len(one.text)} text\n{one.note}", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    if one.method == "pca":
        axes.set_aspect("equal", adjustable="datalim")


def _draw_norms(axes: Axes, one: NormHistogram) -> None:
    total, colour = sum(one.counts), COLOURS[one.modality]
    axes.stairs(
        [count / total for count in one.counts],
        one.edges,
        fill=True,
        color=colour,
        alpha=0.45,
        label=f"{one.modality} tokens",
    )
    for threshold in (one.low, one.high):
        if threshold > 0:
            axes.axvline(threshold, color=colour, linestyle="--", linewidth=1)


def _outliers(layer: int, histograms: Sequence[NormHistogram]) -> str:
    counts = ", ".join(f"{one.n_outliers} {one.modality}" for one in histograms)
    return f"layer {layer}\noutliers: {counts}"
