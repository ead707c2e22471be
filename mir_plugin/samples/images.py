"""Decode images as they are meant to be seen: one frame, upright, 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

# Ghostscript, a program that runs programs, would draw these; the others are stubs that can draw nothing.
_NOT_READ_HERE = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
# Models square a picture by padding or cut a square out of it: beyond these, almost nothing of it is seen, and squares
# of gigabytes would have to be made.
MOST_UNEQUAL_SIDES = 200
LONGEST_SIDE = 13_000


def decoded(source: Path | IO[bytes], *, reduced: bool = False) -> Image.Image:
    """The first frame of an encoded image, as stored; what the bytes are counts, not what the file is called.

    Args:
        reduced: at an eighth of its size where the format allows, but read to its end all the same.
    Raises:
        ValueError: for a picture whose pixels or sides are too many, before they take memory.
        Exception: whatever Pillow's readers raise on bytes that are no image or half of one.
    """
    Image.init()
    image = Image.open(source, formats=[name for name in Image.ID if name not in _NOT_READ_HERE])
    require_moderate(image)
    if reduced:
        image.draft(image.mode, (image.width // 8, image.height // 8))
    with _truncation_is_an_error():
        image.load()
    return image


def as_seen(image: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its EXIF data say; transparency is dropped, as everywhere in these models' code.

    Raises:
        ValueError: for pixels of which it is not known how bright they are.
    """
    stored_as = image.format  # turning forgets it
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_as in ("PNG", "PPM")):
        # Pillow would cut everything above 255 off, which leaves a white picture.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) of unknown range; save the image with 8 or 16 bits")
    return image if image.mode == "RGB" else _without_alpha(image).convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    # Pillow warns on the way from a palette with transparency to RGB, but not by way of RGBA.
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def require_moderate(image: Image.Image) -> None:
    """Raise ValueError for a picture of extreme shape or size."""
    short, long = sorted(image.size)
    if long > MOST_UNEQUAL_SIDES * short:
        raise ValueError(
            f"{image.width} x {image.height} pixels; the longer side may be at most {MOST_UNEQUAL_SIDES} times the "
            "shorter"
        )
    most = Image.MAX_IMAGE_PIXELS or image.width * image.height
    if long > LONGEST_SIDE or image.width * image.height > most:
        raise ValueError(f"{image.width} x {image.height} pixels; at most {LONGEST_SIDE} a side and {most:,} in all")


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Have Pillow refuse half an image: lmms-eval tells it, for the whole process, to fill in grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
