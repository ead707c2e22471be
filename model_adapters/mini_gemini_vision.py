"""From Mini-Gemini's pixels to tokens of the language model: two towers, patch-info mining, projector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mir_plugin.model_adapters.convnext import ConvNextTower, resize_map
from mir_plugin.model_adapters.patch_info_mining import PatchInfoMining


@dataclass(frozen=True)
class ViewLayout:
    """How a picture is cut for the low-resolution tower.

    Attributes:
        side: side of one view in pixels.
        grid: the picture is cut into grid x grid tiles, row by row.
        with_global_view: the whole picture, shrunk from what the tiles are cut from, goes before the tiles.
    """

    side: int
    grid: int = 1
    with_global_view: bool = False


def low_resolution_views(pixels: Tensor, layout: ViewLayout) -> Tensor:
    """The pictures that the low-resolution tower sees, in the order of their tokens: whole picture first, then tiles.

    The original appends the whole picture last and moves its tokens to the front later.

    Args:
        pixels: normalised high-resolution picture, (3, S, S).
        layout: how it is cut.

    Returns:
        (views, 3, side, side).
    """
    side, grid = layout.side, layout.grid
    shrunk = resize_map(pixels[None], (side * grid, side * grid))
    tiles = shrunk.reshape(3, grid, side, grid, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([resize_map(shrunk, (side, side)), tiles]) if layout.with_global_view else tiles


def high_resolution_views(feature_map: Tensor, layout: ViewLayout) -> Iterator[Tensor]:
    """The part of the high-resolution map that belongs to each low-resolution view, in the same order.

    Args:
        feature_map: (d_aux, height, width) of the whole picture.
        layout: as for ``low_resolution_views``.

    Yields:
        (d_aux, height / grid, width / grid).
    """
    grid = layout.grid
    height, width = (length // grid for length in feature_map.shape[-2:])
    if layout.with_global_view:
        yield resize_map(feature_map[None], (height, width))[0]
    for row in range(grid):
        for column in range(grid):
            yield feature_map[:, row * height : (row + 1) * height, column * width : (column + 1) * width]


class MiniGeminiVision(nn.Module):
    """Pictures to image tokens in the language model's width.

    Pictures are encoded one by one: a 7B model's feature map takes 0.4 GB (HD: 1.7 GB) in float32 for each, and a
    picture's tokens do not depend on what it is batched with.
    """

    def __init__(
        self,
        vision_tower: nn.Module,
        vision_tower_aux: ConvNextTower,
        mining: PatchInfoMining,
        projector: nn.Module,
        layout: ViewLayout,
    ) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.vision_tower_aux = vision_tower_aux
        self.mining = mining
        self.projector = projector
        self.layout = layout

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised high-resolution pictures (images, 3, S, S), float32, to image tokens (images, tokens, d)."""
        return torch.stack([self.encode_picture(picture) for picture in pixels])

    def encode_picture(self, pixels: Tensor) -> Tensor:
        """One picture (3, S, S) to its tokens (views * tokens per view, d), view by view."""
        views = low_resolution_views(pixels, self.layout)
        dtype = next(self.mining.parameters()).dtype
        tokens = self.vision_tower(views.to(dtype))
        feature_map = self.vision_tower_aux(pixels[None].to(dtype))[0]
        mined = [
            self.mining(view_tokens, view_map)
            for view_tokens, view_map in zip(tokens, high_resolution_views(feature_map, self.layout), strict=True)
        ]
        return cast("Tensor", self.projector((tokens + torch.stack(mined)).flatten(0, 1)))
