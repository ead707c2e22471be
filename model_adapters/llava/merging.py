"""From the projector's rows of a picture's views to its vision tokens.

Source: llava/model/llava_arch.py of LLaVA-VL/LLaVA-NeXT (unpad_image, prepare_inputs_labels_for_multimodal), and the
same lines of LLaVA-1.6 in haotian-liu/LLaVA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.views import Size, Views

if TYPE_CHECKING:
    from torch import Tensor

MERGE_TYPES = ("flat", "spatial", "spatial_unpad", "spatial_nobase", "spatial_unpad_nobase")
_TOLERATED_EXCESS = 1.1  # of the side of the tiles' map over what max_tiles allows


@dataclass(frozen=True)
class Merge:
    """Puts the rows of a picture's views together.

    Attributes:
        kind: one of ``MERGE_TYPES``.
        patches_per_side: feature rows along one side of a view.
        views: how pictures are cut; None where each is one view.
    """

    kind: str
    patches_per_side: int
    views: Views | None

    @property
    def has_newline(self) -> bool:
        """Whether a learned row ends each line of the tiles' map."""
        return "unpad" in self.kind

    def n_rows(self, size: Size) -> int:
        """Vision tokens of a picture of this size."""
        of_view = self.patches_per_side**2
        if self.views is None:
            return of_view + self.has_newline
        columns, rows = self.views.grid(size)
        if not self.has_newline:
            return of_view * (columns * rows + ("nobase" not in self.kind))
        height, width = self._shrunk(*self._unpadded(size)[1])
        return height * (width + 1) + (0 if "nobase" in self.kind else of_view)

    def __call__(self, rows: Tensor, size: Size, newline: Tensor | None) -> Tensor:
        """Vision tokens (n_rows, d) of one picture from its views' rows (views, patches, d), the whole picture first.

        Args:
            newline: (d,), for merge types with "unpad".
        """
        import torch

        if self.views is None:
            return rows[0] if newline is None else torch.cat([rows[0], newline[None]])
        if self.kind == "flat":
            return rows.flatten(0, 1)
        side, (columns, lines) = self.patches_per_side, self.views.grid(size)
        tiles = rows[1:].view(lines, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        grid = tiles.flatten(1, 2).flatten(2, 3)  # (d, height, width)
        merged = grid.flatten(1, 2).transpose(0, 1) if newline is None else self._lines(grid, size, newline)
        return merged if "nobase" in self.kind else torch.cat([rows[0], merged])

    def _lines(self, grid: Tensor, size: Size, newline: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import interpolate

        (top, left), (height, width) = self._unpadded(size)
        grid = grid[:, top : top + height, left : left + width]
        shrunk = self._shrunk(height, width)
        if shrunk != (height, width):
            grid = interpolate(grid[None], shrunk, mode="bilinear")[0]
        ends = newline[:, None, None].expand(-1, shrunk[0], 1)
        return torch.cat([grid, ends], dim=-1).flatten(1, 2).transpose(0, 1)

    def _unpadded(self, size: Size) -> tuple[Size, Size]:
        """(top, left) and (height, width) of the part of the tiles' map that shows the picture, not its padding."""
        assert self.views is not None
        columns, rows = self.views.grid(size)
        full_width, full_height = columns * self.patches_per_side, rows * self.patches_per_side
        width, height = size
        if width / height > full_width / full_height:
            top = (full_height - int(height * (full_width / width))) // 2
            return (top, 0), (full_height - 2 * top, full_width)
        left = (full_width - int(width * (full_height / height))) // 2
        return (0, left), (full_height, full_width - 2 * left)

    def _shrunk(self, height: int, width: int) -> Size:
        """(height, width) after the limit on tiles."""
        assert self.views is not None
        if self.views.max_tiles is None:
            return height, width
        times = math.sqrt(height * width / (self.views.max_tiles * self.patches_per_side**2))
        return (int(height // times), int(width // times)) if times > _TOLERATED_EXCESS else (height, width)


def open_merge(config: Mapping[str, Any], views: Views | None, patches_per_side: int, *, stored: bool) -> Merge | None:
    """What a checkpoint's config says; None where the rows of one view are the vision tokens.

    Args:
        stored: whether the weights hold ``image_newline``.
    Raises:
        MirError: for a merge type that is not known, or without the newline that it needs.
    """
    kind = str(config.get("mm_patch_merge_type") or "flat")
    if kind not in MERGE_TYPES:
        raise MirError(
            f"mm_patch_merge_type is {kind!r} in config.json; supported: {', '.join(MERGE_TYPES)}. Write an adapter of "
            "your own (`mir adapters`) for another one."
        )
    merge = Merge(kind, patches_per_side, views)
    if views is None and not stored:
        return None
    if merge.has_newline and not stored:
        raise MirError(
            f"mm_patch_merge_type is {kind!r} in config.json, but no weights hold model.image_newline, the row that "
            "ends each line of an image: pre-training leaves it random and does not save it. Name a full checkpoint "
            "that has it with --base-llm, or measure the checkpoint after the next stage."
        )
    return merge if views is not None or merge.has_newline else None
