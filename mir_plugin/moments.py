"""Count, mean and covariance of one modality at one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.normalize import CHUNK_ROWS


@dataclass(frozen=True)
class Moments:
    """First two moments of a set of token features, in float64.

    Attributes:
        n: number of tokens, at least 2.
        mean: (d,).
        cov: (d, d), unbiased.
        root: (n, d) with rootᵀ root = cov, where n < d; None otherwise. It makes the trace term cheap and exact when
            the covariance is singular.
    """

    n: int
    mean: Tensor
    cov: Tensor
    root: Tensor | None = None

    def scaled(self, factor: Tensor | float) -> Moments:
        """Moments of the features multiplied by ``factor``."""
        root = None if self.root is None else self.root * factor
        return Moments(self.n, self.mean * factor, self.cov * factor**2, root)


def moments(features: Tensor, replaced: Tensor | None = None, replacement: Tensor | None = None) -> Moments:
    """Mean and unbiased covariance of (tokens, d) features, any float dtype, accumulated in float64.

    Two passes (mean, then centred products): a covariance formed as E[xx] − μμ loses all digits when one coordinate is
    much larger than its spread, which massive activations are.

    Args:
        features: (tokens, d); not modified.
        replaced: bool (tokens,), rows that count as ``replacement`` instead.
        replacement: (d,).
    Raises:
        MirError: for fewer than two tokens.
    """
    n, d = features.shape
    if n < 2:
        raise MirError(f"{n} token(s) of one modality; a covariance needs at least 2. Use more or longer samples.")

    def rows(start: int) -> Tensor:
        chunk = features[start : start + CHUNK_ROWS].to(torch.float64, copy=True)
        if replaced is not None and replacement is not None:
            chunk[replaced[start : start + CHUNK_ROWS]] = replacement.double()
        return chunk

    starts = range(0, n, CHUNK_ROWS)
    mean = torch.stack([rows(start).sum(dim=0) for start in starts]).sum(dim=0) / n
    cov = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for start in starts:
        centred = rows(start) - mean
        cov.addmm_(centred.t(), centred)
    root = (torch.cat([rows(start) for start in starts]) - mean) / (n - 1) ** 0.5 if n < d else None
    return Moments(n, mean, cov / (n - 1), root)
