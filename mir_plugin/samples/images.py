"""From stored images to pictures as they are meant to be seen: one frame, upright, 8 bits of red, green and blue."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile

# Ghostscript, a program that runs programs, would draw these; the others are stubs that can draw nothing.
_NOT_READ_HERE = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
# Models square a picture by padding or cut a square out of it: beyond these, almost nothing of it is seen, and squares
# of gigabytes would have to be made.
MOST_UNEQUAL_SIDES = 200
LONGEST_SIDE = 13_000
_SAMPLES_OF_A_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by a PNG's colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(source: Path | IO[bytes], *, reduced: bool = False) -> Image.Image:
    """The first frame of an encoded image, as stored; what the bytes are counts, not what the file is called.

    Args:
        reduced: at an eighth of its size where the format allows, but read to its end all the same.
    Raises:
        ValueError: for a picture whose pixels or sides are too many, before they take memory.
        ValueError: for a PNG that holds fewer rows than it says.
        Exception: whatever Pillow's readers raise on bytes that are no image or half of one.
    """
    Image.init()
    image = Image.open(source, formats=[name for name in Image.ID if name not in _NOT_READ_HERE])
    require_moderate(image)
    if reduced:
        image.draft(image.mode, (image.width // 8, image.height // 8))
    with _truncation_is_an_error():
        image.load()
    if image.format == "PNG":
        _require_all_rows(source)
    return image


def as_seen(image: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its EXIF data say; transparency is dropped, as everywhere in these models' code.

    Raises:
        ValueError: for pixels of which it is not known how bright they are.
    """
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow would cut everything above 255 off, which leaves a white picture.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16")
    image = image if image.mode == "RGB" else _without_alpha(image).convert("RGB")
    return image if turn is None else image.transpose(turn)


def _without_alpha(image: Image.Image) -> Image.Image:
    # Pillow warns on the way from a palette with transparency to RGB, but not by way of RGBA.
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def require_moderate(image: Image.Image) -> None:
    """Raise ValueError for a picture of extreme shape or size."""
    short, long = sorted(image.size)
    if long > MOST_UNEQUAL_SIDES * short:
        raise ValueError(f"it is {image.width} x {image.height}; one side may be {MOST_UNEQUAL_SIDES} times the other")
    most = Image.MAX_IMAGE_PIXELS or image.width * image.height
    if long > LONGEST_SIDE or image.width * image.height > most:
        raise ValueError(f"it is {image.width} x {image.height}; at most {LONGEST_SIDE} a side and {most:,} pixels")


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Have Pillow refuse half an image: lmms-eval tells it, for the whole process, to fill in grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _require_all_rows(source: Path | IO[bytes]) -> None:
    """Raise ValueError for a PNG whose data end early and well: Pillow leaves the rows that are missing black."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(0)
        chunks = _png_chunks(file)
        width, height, depth, colours, _, _, interlace = struct.unpack(">IIBBBBB", next(chunks)[1][:13])
        bits = depth * _SAMPLES_OF_A_PIXEL[colours]
        passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
        sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
        missing = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)
        unpack = zlib.decompressobj()
        for kind, data in chunks:
            while kind == b"IDAT" and data and missing > 0 and not unpack.eof:
                missing -= len(unpack.decompress(data, min(missing, 1 << 20)))
                data = unpack.unconsumed_tail
        missing -= len(unpack.flush()) if missing > 0 else 0
    if missing > 0:
        raise ValueError(f"image file is truncated ({missing} bytes of its pixels are missing)")


def _png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    file.read(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        data = file.read(length) if kind in (b"IHDR", b"IDAT") else b""
        yield kind, data
        file.seek(length - len(data) + 4, 1)
