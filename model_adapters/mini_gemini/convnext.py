"""Mini-Gemini's high-resolution tower: timm's ConvNeXt without head, its four stages stacked into one map."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mir_plugin.errors import MirError

# The one released ConvNeXt whose LayerNorms do not use 1e-6 (timm's `convnext_xxlarge`), known by its stage widths.
NORM_EPS_BY_WIDTHS: Mapping[tuple[int, ...], float] = {(384, 768, 1536, 3072): 1e-5}


class ConvNextTower(nn.Module):
    """ConvNeXt stem and stages; every stage's map enlarged to the first one's size and put side by side.

    Stochastic depth is left out altogether: the original forgets to switch it off, which makes its inference random.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        # Importing timm takes seconds, and every checkpoint's family is looked up through this package.
        from timm.models.convnext import ConvNeXt

        network = ConvNeXt(
            depths=tuple(depths),
            dims=tuple(widths),
            num_classes=0,
            norm_eps=NORM_EPS_BY_WIDTHS.get(tuple(widths), 1e-6),
        )
        self.stem = network.stem
        self.stages = network.stages
        self.n_channels = sum(widths)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (images, 3, S, S) to a feature map (images, n_channels, S / AUX_STRIDE, S / AUX_STRIDE)."""
        stage_map = self.stem(pixels.to(next(self.parameters()).dtype))
        maps: list[Tensor] = []
        for stage in self.stages:
            stage_map = stage(stage_map)
            maps.append(stage_map if not maps else resize_map(stage_map, maps[0].shape[-2:]))
        return torch.cat(maps, dim=1)


def resize_map(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation with half-pixel centres and without antialiasing, computed in float32.

    Args:
        feature_map: (images, channels, height, width).
        size: height and width wanted.
    """
    resized = functional.interpolate(feature_map.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.to(feature_map.dtype)


def build_convnext(shapes: Mapping[str, Sequence[int]], source: str) -> ConvNextTower:
    """A tower of the size that the weights have; the checkpoint's config does not tell it.

    Args:
        shapes: tensor shapes by key, spelled ``stem.*`` and ``stages.*``.
        source: file or folder the shapes come from, for the error message.

    Raises:
        MirError: if the keys do not form four stages of blocks with a layer scale each.
    """
    block_keys = [re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.gamma", key) for key in shapes]
    blocks = {(int(match[1]), int(match[2])): shapes[match[0]] for match in block_keys if match}
    depths = [sum(stage == index for stage, _ in blocks) for index in range(4)]
    if not all(depths) or len(blocks) != sum(depths) or any((i, d - 1) not in blocks for i, d in enumerate(depths)):
        raise MirError(
            f"{source} is not a ConvNeXt: expected layer scales 'stages.<0-3>.blocks.<n>.gamma' without a gap, found "
            f"{sorted(blocks) or 'none'} (stage, block). The second tower of Mini-Gemini is an OpenCLIP ConvNeXt; "
            "name its folder with --vision-tower-aux."
        )
    widths = [blocks[stage, 0][0] for stage in range(4)]
    return ConvNextTower(depths, widths)
