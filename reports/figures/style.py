"""The look that all figures share, and how they are saved: readable with any colour vision, the same every time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mir_plugin.files.atomic import replacing
from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import Board

MARKERS = ("o", "D", "^", "s", "v", "P", "X", "h")
DASHES = ("-", "--", ":", "-.")
INK, MUTED = "#1A202C", "#5B6472"
MAX_LABEL = 40  # characters
STYLE: dict[Any, Any] = {  # matplotlib's parameters
    "font.size": 9,
    "axes.edgecolor": "#9AA3AF",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E9ED",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text: searchable, and set in the reader's font
    "svg.hashsalt": "mir-plugin",  # else the ids in an SVG are drawn at random
    "savefig.dpi": 180,
}


def new_figure(board: Board, cohort: str, width: float, height: float, note: str = "") -> Figure:
    """An empty figure (inches) whose footnote says which cohort it shows, where there are several."""
    figure = Figure(figsize=(width, height), layout="constrained")
    only = f"Cohort {cohort} of {len(board.cohorts)}." if len(board.cohorts) > 1 else ""
    footnote = " ".join(filter(None, (only, note)))
    if footnote:
        figure.supxlabel(storable(footnote), fontsize=7, color=MUTED)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem``.png and .svg; a reader sees the old file or the whole new one."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names in scripts that the font lacks show as boxes in the PNG; the SVG holds them as text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine(None)  # one layout serves both files
        for suffix, stamp in ((".png", "Software"), (".svg", "Date")):
            with replacing(stem.with_name(stem.name + suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], metadata={stamp: None})


def legend_beside(axes: Axes) -> None:
    """A legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def legend_label(name: str) -> str:
    """The name, cut to fit; a leading underscore would keep an entry out of the legend."""
    text = storable(name) or "no group"
    text = text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
    return f" {text}" if text.startswith("_") else text
