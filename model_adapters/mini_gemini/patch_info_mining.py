"""Patch-info mining: every low-resolution token looks at its own window of the high-resolution map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError


class PatchInfoMining(nn.Module):
    """Single-head attention from each token to the window of the feature map that shows the same part of the picture.

    The submodules carry the checkpoint's names without their ``vlm_uni_`` prefix.

    Reference: Li et al. 2024, arXiv:2403.18814, section 3.2.
    """

    def __init__(self, d: int, d_aux: int) -> None:
        super().__init__()
        self.query_projector = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d))
        self.aux_projector = nn.Sequential(nn.LayerNorm(d_aux), nn.Linear(d_aux, d))
        self.val_projector = nn.Sequential(nn.LayerNorm(d_aux), nn.Linear(d_aux, d))

    def forward(self, tokens: Tensor, feature_map: Tensor) -> Tensor:
        """What the tokens find in the map; to be added to them.

        Args:
            tokens: (n * n, d), row-major over the picture.
            feature_map: (d_aux, n * p, n * p); token (r, c) sees its rows r*p ... r*p+p-1 and the same of columns.

        Returns:
            (n * n, d).

        Raises:
            MirError: if the map cannot be divided evenly among the tokens.
        """
        positions = feature_map.permute(1, 2, 0)
        queries = self.query_projector(tokens)
        keys = windows(self.aux_projector(positions), len(tokens))
        values = windows(self.val_projector(positions), len(tokens))
        logits = torch.einsum("td,twd->tw", queries, keys) / queries.shape[-1] ** 0.5
        # As in the original: float16 products can overflow. A NaN feature still shows, through the values.
        weights = torch.nan_to_num(logits).softmax(dim=-1)
        return torch.einsum("tw,twd->td", weights, values)


def windows(positions: Tensor, n_tokens: int) -> Tensor:
    """Cut a map into one square window per token: (n * p, n * p, d) to (n * n, p * p, d), both row-major.

    Raises:
        MirError: if the map cannot be divided evenly among the tokens.
    """
    n = round(n_tokens**0.5)
    height, width, d = positions.shape
    if n * n != n_tokens or height % n or width % n:
        raise MirError(
            f"patch-info mining cannot divide a {height} x {width} feature map among {n_tokens} tokens: expected a "
            "square number of tokens and a map whose sides are multiples of its root. Check image_size_aux, image_grid "
            "and mm_vision_select_feature ('patch') in config.json, and that both vision towers are the right ones."
        )
    p, q = height // n, width // n
    return positions.reshape(n, p, n, q, d).transpose(1, 2).reshape(n_tokens, p * q, d)
