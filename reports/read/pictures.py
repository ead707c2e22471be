"""Reads the output of ``mir pictures`` and ``mir robustness``: data, and pictures to show unchanged."""

from __future__ import annotations

from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.pictures.data import METHODS, NORMS, Pictures
from mir_plugin.reports.read.identity import checkpoint_ref
from mir_plugin.reports.read.records import ParsedSources, Picture, Problem
from mir_plugin.robustness.results import Robustness

CAPTIONS = {
    **{f"tokens-{method}": f"vision and text tokens, {label}" for method, label in METHODS.items()},
    NORMS: "norms of vision and text tokens, with the thresholds for outliers",
}


def read_pictures(path: Path) -> ParsedSources:
    """The pictures of one checkpoint, beside the pictures.json at ``path``; a problem for each that is missing."""
    try:
        data = Pictures.load(path)
    except MirError as error:
        return _unreadable(path, str(error), "Draw them again with `mir pictures`.")
    checkpoint = checkpoint_ref(data.checkpoint)
    return ParsedSources.total(
        _picture(checkpoint.label, CAPTIONS[name], path.with_name(f"{name}.png"), checkpoint.keys)
        for name in data.file_names
    )


def read_robustness(path: Path) -> ParsedSources:
    """A robustness report and its figure."""
    try:
        report = Robustness.load(path)
    except MirError as error:
        return _unreadable(path, str(error), "Run `mir robustness` again.")
    figure = _picture(
        "Robustness", "MIR under every condition, and over the number of samples", path.with_suffix(".png")
    )
    return ParsedSources.total([ParsedSources(robustness=(report,)), figure])


def _picture(title: str, caption: str, path: Path, keys: tuple[str, ...] = ()) -> ParsedSources:
    try:
        return ParsedSources(pictures=(Picture(title, caption, path.read_bytes(), str(path), keys),))
    except OSError as error:
        return _unreadable(
            path, f"cannot read {path}: {error.strerror}", "Draw it again with the command that made it."
        )


def _unreadable(path: Path, what: str, remedy: str) -> ParsedSources:
    return ParsedSources(problems=(Problem("warning", "unreadable", str(path), what, remedy),))
