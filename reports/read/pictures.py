"""Reads the output of ``mir pictures`` and ``mir robustness``: data, and pictures to show unchanged."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from PIL import Image

from mir_plugin.errors import MirError
from mir_plugin.pictures.data import METHODS, NORMS, Pictures
from mir_plugin.reports.read.identity import checkpoint_ref
from mir_plugin.reports.read.records import ParsedSources, Picture, Problem
from mir_plugin.robustness.results import Robustness

LARGEST_PICTURE = 32 << 20
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
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
    unknown = [name for name in data.file_names if name not in CAPTIONS]
    if unknown:
        what = f"it names pictures that this version does not know: {', '.join(unknown)}"
        return _unreadable(path, what, "Draw them again with `mir pictures`, or update.")
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
        return ParsedSources(pictures=(Picture(title, caption, _png(path), str(path), keys),))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            reason = "it is a link"
        return _unreadable(path, f"cannot read {path}: {reason}", "Draw it again with the command that made it.")


def _png(path: Path) -> bytes:
    """The bytes of a picture that the page will hold: those of a regular file in this very place, and of a PNG.

    Raises:
        OSError, ValueError: for a link, pipe or device, and for anything but one whole PNG. A link would bring any file
            of this machine into the page.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a regular file")
        content = file.read(LARGEST_PICTURE + 1)
    if len(content) > LARGEST_PICTURE:
        raise ValueError(f"larger than {LARGEST_PICTURE >> 20} MB")
    _require_png(content)
    return content


def _require_png(content: bytes) -> None:
    if not (content.startswith(PNG_START) and content.endswith(PNG_END)):
        raise ValueError("not a PNG file, or cut short")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()
    # Damaged bytes lead Pillow's readers to exceptions of any kind.
    except Exception as error:
        raise ValueError(f"not a valid PNG file ({error})") from error


def _unreadable(path: Path, what: str, remedy: str) -> ParsedSources:
    return ParsedSources(problems=(Problem("warning", "unreadable", str(path), what, remedy),))
