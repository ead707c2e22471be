"""Images to pixel tensors as the original does it: PIL resizing, then the image processor's arithmetic in NumPy.

transformers 5 resizes with torchvision by default, which moves hidden states by about 1e-3; its PIL backend has other
names in every minor version. The few steps that CLIP and SigLIP towers use are therefore done here, from the same
``preprocessor_config.json``, and are equal to the recorded pixels to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.views import Size, Views
from mir_plugin.model_adapters.weights.stored import read_json

_LARGEST_SIDE = 4096


@dataclass(frozen=True)
class ClipPreprocessor:
    """Resize, crop the centre, scale to [0, 1], normalise.

    Attributes:
        short_side: pixels of the short side after resizing; None leaves the size.
        crop: (height, width) of the centre crop; None keeps all.
        mean, std: per channel, of values in [0, 1].
        rescale_factor: what 8-bit values are multiplied with.
        resample: PIL's number of the resampling filter (3: bicubic).
        pad_to_square: first put the image on a centred square of the mean colour (``image_aspect_ratio: pad``).
        exact: (height, width) after resizing, whatever the image's shape, instead of ``short_side`` (SigLIP).
        views: how pictures are cut before all this (``image_aspect_ratio: anyres``).
    """

    short_side: int | None
    crop: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    resample: int = 3
    pad_to_square: bool = False
    exact: tuple[int, int] | None = None
    views: Views | None = None

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values, float32 (views, 3, height, width): of each image all its views."""
        return torch.from_numpy(np.stack([self._one(view) for image in images for view in self._views_of(image)]))

    def n_views(self, size: Size) -> int:
        """Views of an image of this size, (width, height)."""
        return 1 if self.views is None else self.views.n_views(size)

    def of_side(self, side: int) -> ClipPreprocessor:
        """The same for larger or smaller squares."""
        square = (side, side)
        return replace(self, exact=square) if self.exact else replace(self, short_side=side, crop=square)

    def require_side(self, side: int, folder: Path) -> None:
        """Raise MirError unless the pictures that come out are squares of this side; ``folder`` holds the settings."""
        made = self.crop or self.exact or ((self.short_side,) * 2 if self.pad_to_square and self.short_side else None)
        if made != (side, side):
            shown = f"{made[0]} x {made[1]} pixels" if made else "pictures of any shape"
            raise MirError(
                f"{folder / 'preprocessor_config.json'} makes {shown}, but the vision tower takes {side} x {side}. "
                "Copy the tower's own, or name the tower it belongs to with --vision-tower."
            )

    def _views_of(self, image: Image.Image) -> list[Image.Image]:
        return [image] if self.views is None else self.views.cut(image.convert("RGB"))

    def _one(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        image = image.convert("RGB")
        if self.pad_to_square:
            image = padded_to_square(image, self.mean)
        if self.short_side is not None:
            image = image.resize(_resized(image.size, self.short_side), Image.Resampling(self.resample))
        if self.exact is not None:
            image = image.resize(self.exact[::-1], Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _centre_crop(pixels, *self.crop)
        scaled = (pixels * self.rescale_factor).astype(np.float32)
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def open_preprocessor(folder: Path, *, image_aspect_ratio: str | None, views: Views | None = None) -> ClipPreprocessor:
    """The preprocessor of a vision tower's folder.

    ``image_aspect_ratio`` is the checkpoint's: "pad", or "square" (also None), where the processor crops. With
    ``views`` pictures are cut first.

    Raises:
        MirError: if ``preprocessor_config.json`` is missing or asks for steps that such towers do not have, or the
            aspect ratio is another one.
    """
    if views is None and image_aspect_ratio not in ("pad", "square", None):
        raise MirError(
            f"image_aspect_ratio is {image_aspect_ratio!r} in config.json, expected 'pad' or 'square'. Convert the "
            "checkpoint to the Hugging Face format and load it with --family huggingface."
        )
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    for name in ("do_resize", "do_center_crop", "do_normalize", "do_rescale"):
        if not isinstance(config.get(name, True), bool):
            raise MirError(
                f"{path} has {name} = {config[name]!r}, expected true or false. Copy the vision tower's own."
            )
    try:
        exact = _exact(config) if config.get("do_resize", True) else None
        preprocessor = ClipPreprocessor(
            short_side=_short_side(config) if config.get("do_resize", True) and exact is None else None,
            crop=_crop(config) if config.get("do_center_crop", exact is None) else None,
            mean=_three(config["image_mean"]) if config.get("do_normalize", True) else (0.0, 0.0, 0.0),
            std=_three(config["image_std"]) if config.get("do_normalize", True) else (1.0, 1.0, 1.0),
            rescale_factor=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            resample=int(config.get("resample", 3)),
            pad_to_square=image_aspect_ratio == "pad",
            exact=exact,
            views=views,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MirError(
            f"{path} does not describe a CLIP or SigLIP image processor ({error!r}). Copy the vision tower's own."
        ) from error
    _require_sense(preprocessor, path)
    return preprocessor


def _require_sense(made: ClipPreprocessor, path: Path) -> None:
    crop = made.crop or (1, 1)
    wrong = {
        "image_mean": not all(map(math.isfinite, made.mean)),
        "image_std": not all(0 < value < math.inf for value in made.std),
        "rescale_factor": not 0 < made.rescale_factor <= 1,
        "resample": made.resample not in [int(filter_) for filter_ in Image.Resampling],
        "size (shortest_edge)": made.short_side is not None and not max(crop) <= made.short_side <= _LARGEST_SIDE,
        "size": made.exact is not None and not 1 <= min(made.exact) <= max(made.exact) <= _LARGEST_SIDE,
        "crop_size": not min(crop) >= 1,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise MirError(
                f"{path} has a value of {name} that cannot be: {made}. Copy the vision tower's own; pictures are "
                f"resized to at least the crop and at most {_LARGEST_SIDE} pixels."
            )


def padded_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """An RGB image on a centred square canvas of the mean colour (channel means in [0, 1], rounded down to 8 bits)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _centre_crop(pixels: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top < 0 or left < 0:
        raise MirError(
            f"the image processor crops {height}x{width} pixels out of {pixels.shape[0]}x{pixels.shape[1]}; "
            f"its short side must be at least the crop. Check preprocessor_config.json of the vision tower."
        )
    return pixels[top : top + height, left : left + width]


def _exact(config: dict[str, Any]) -> tuple[int, int] | None:
    size = config["size"]
    return (int(size["height"]), int(size["width"])) if isinstance(size, dict) and "shortest_edge" not in size else None


def _short_side(config: dict[str, Any]) -> int:
    size = config["size"]
    return int(size["shortest_edge"] if isinstance(size, dict) else size)


def _crop(config: dict[str, Any]) -> tuple[int, int]:
    crop = config["crop_size"]
    return (int(crop["height"]), int(crop["width"])) if isinstance(crop, dict) else (int(crop), int(crop))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
