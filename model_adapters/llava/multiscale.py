"""S2: features of one picture at several sizes, side by side.

A larger picture is cut into squares of the tower's size; their feature maps are put together again and averaged down to
the smallest one's. Source: s2wrapper/core.py of bfshi/scaling_on_scales, and Bunny's copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def multiscale(features_of: Callable[[Tensor], Tensor], pixel_values: Tensor, scales: Sequence[int]) -> Tensor:
    """Features (images, patches, width x scales) of square pictures (images, 3, side, side).

    Args:
        features_of: features (images, patches, width) of pictures of the smallest scale.
        scales: sides in pixels, smallest first; multiples of it.
    """
    maps = [_feature_map(features_of, pixel_values, side, scales[0]) for side in scales]
    side = maps[0].shape[-1]
    shrunk = [interpolate(one.float(), size=side, mode="area").to(one.dtype) for one in maps]
    return torch.cat(shrunk, dim=1).flatten(2).transpose(1, 2)


def _feature_map(features_of: Callable[[Tensor], Tensor], pixel_values: Tensor, side: int, tile: int) -> Tensor:
    """(images, width, height, width) of the picture at one size, from its tiles."""
    resized = interpolate(pixel_values.float(), size=side, mode="bicubic").to(pixel_values.dtype)
    rows = []
    for top in range(0, side, tile):
        tiles = [features_of(resized[:, :, top : top + tile, x : x + tile]) for x in range(0, side, tile)]
        rows.append(torch.cat([_as_map(one) for one in tiles], dim=-1))
    return torch.cat(rows, dim=-2)


def _as_map(features: Tensor) -> Tensor:
    n_images, n_patches, width = features.shape
    side = round(n_patches**0.5)
    return features.transpose(1, 2).reshape(n_images, width, side, side)
