"""How a picture of any shape is cut into views for the vision tower (LLaVA-1.6 and OneVision: "anyres").

Source: llava/mm_utils.py of LLaVA-VL/LLaVA-NeXT (select_best_resolution, resize_and_pad_image, process_anyres_image).
Imports no torch.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mir_plugin.errors import MirError

Size = tuple[int, int]
"""(width, height), as PIL has it."""
_RANGE = re.compile(r"\((\d+)x(\d+)\)")
_MAX_TILES = re.compile(r"anyres_max_(\d+)")


@dataclass(frozen=True)
class Views:
    """The whole picture, and the tiles of an enlarged one.

    Attributes:
        resolutions: (width, height) that a picture may be enlarged to, multiples of ``side``.
        side: of one view in pixels.
        max_tiles: tiles' worth of feature rows above which the tiles' map is shrunk; None for no limit.
    """

    resolutions: tuple[Size, ...]
    side: int
    max_tiles: int | None = None

    def grid(self, size: Size) -> Size:
        """Columns and rows of tiles of a picture of this size."""
        width, height = best_resolution(size, self.resolutions)
        return width // self.side, height // self.side

    def n_views(self, size: Size) -> int:
        """Views of a picture of this size, the whole one included."""
        columns, rows = self.grid(size)
        return 1 + columns * rows

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The whole picture squeezed to a square, then the tiles row by row; an RGB image."""
        whole = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        width, height = best_resolution(image.size, self.resolutions)
        padded = _resized_and_padded(image, (width, height))
        corners = [(left, top) for top in range(0, height, self.side) for left in range(0, width, self.side)]
        return [whole, *(padded.crop((left, top, left + self.side, top + self.side)) for left, top in corners)]


def views_of(config: Mapping[str, Any], side: int) -> Views | None:
    """What a checkpoint's config says; None where a picture is one view.

    Raises:
        MirError: for another way to cut pictures, or resolutions that are not multiples of the tower's side.
    """
    ratio = config.get("image_aspect_ratio")
    if ratio in (None, "square", "pad"):
        return None
    limit = _MAX_TILES.fullmatch(str(ratio))
    if ratio != "anyres" and limit is None:
        raise MirError(
            f"image_aspect_ratio is {ratio!r} in config.json; supported: pad, square, anyres, anyres_max_N. Convert "
            "the checkpoint to the Hugging Face format where transformers has its model, or write an adapter of your "
            "own (`mir adapters`)."
        )
    resolutions = _resolutions(config.get("image_grid_pinpoints"), side)
    wrong = [size for size in resolutions if min(size) < side or size[0] % side or size[1] % side]
    if not resolutions or wrong:
        raise MirError(
            f"image_grid_pinpoints of config.json is {config.get('image_grid_pinpoints')!r}, expected sizes in "
            f"multiples of the vision tower's {side} pixels. Copy the checkpoint's own config, or name the tower that "
            "it was trained with by --vision-tower."
        )
    return Views(resolutions, side, int(limit[1]) if limit else None)


def best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The resolution that keeps most of a picture's pixels; of several, the one that wastes fewest; then the first.

    >>> best_resolution((800, 300), [(336, 672), (672, 336), (672, 672)])
    (672, 336)
    """
    width, height = size

    def rank(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=rank)


def _resized_and_padded(image: Image.Image, target: Size) -> Image.Image:
    """On a black canvas of the target's size, centred, as large as fits."""
    width, height = image.size
    by_width, by_height = target[0] / width, target[1] / height
    if by_width < by_height:
        size = (target[0], min(math.ceil(height * by_width), target[1]))
    else:
        size = (min(math.ceil(width * by_height), target[0]), target[1])
    canvas = Image.new("RGB", target, (0, 0, 0))
    left, top = (target[0] - size[0]) // 2, (target[1] - size[1]) // 2
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    return canvas


def _resolutions(stated: Any, side: int) -> tuple[Size, ...]:
    """From a list, its text, or LLaVA-NeXT's range "(1x1),...,(6x6)" in tiles; empty for what is none of these."""
    if isinstance(stated, str) and (corners := _RANGE.findall(stated)):
        (left, top), (right, bottom) = ([int(number) for number in corners[place]] for place in (0, -1))
        return tuple((i * side, j * side) for i in range(left, right + 1) for j in range(top, bottom + 1))
    try:
        listed = ast.literal_eval(stated) if isinstance(stated, str) else stated
        return tuple((int(width), int(height)) for width, height in listed)
    except (SyntaxError, TypeError, ValueError):
        return ()
