"""Count, mean and covariance of one modality at one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.metric.normalize import CHUNK_ROWS
from mir_plugin.processes import ALONE, Group


@dataclass(frozen=True)
class Moments:
    """First two moments of a set of token features, in float64.

    Attributes:
        n: number of tokens, at least 2.
        mean: (d,).
        cov: (d, d), unbiased.
        root: (r, d) with rootᵀ root = cov, where the covariance has a rank r < d for certain; None otherwise. It makes
            the trace term cheap, and exact: directions of which only rounding is left have no row.
    """

    n: int
    mean: Tensor
    cov: Tensor
    root: Tensor | None = None

    def scaled(self, factor: Tensor | float) -> Moments:
        """Moments of the features multiplied by ``factor``."""
        root = None if self.root is None else self.root * factor
        return Moments(self.n, self.mean * factor, self.cov * factor**2, root)


def moments(
    features: Tensor, replaced: Tensor | None = None, replacement: Tensor | None = None, group: Group = ALONE
) -> Moments:
    """Mean and unbiased covariance of (tokens, d) features, any float dtype, accumulated in float64.

    Two passes (mean, then centred products): a covariance formed as E[xx] − μμ loses all digits when one coordinate is
    much larger than its spread, which massive activations are.

    Args:
        features: (tokens, d), this process's rows; not modified.
        replaced: bool (tokens,), rows that count as ``replacement`` instead.
        replacement: (d,).
        group: the processes whose rows are taken together.
    Raises:
        MirError: for fewer than two tokens in all processes together.
    """
    n, d = sum(group.all_gather_object(len(features))), features.shape[1]
    if n < 2:
        raise MirError(f"{n} token(s) of one modality; a covariance needs at least 2. Use more or longer samples.")

    total = torch.zeros(d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        total += chunk.sum(dim=0)
    mean = group.all_reduce(total) / n
    products = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        _add_upper_products(products, chunk.sub_(mean))
    products = products.triu_() + products.triu(1).t()
    n_replaced = 0 if replaced is None else sum(group.all_gather_object(int(replaced.sum())))
    root = None
    if n - max(n_replaced, 1) < d:
        own = features if replaced is None else features[~replaced]
        distinct = [group.all_gather(own.double() - mean)]
        if n_replaced and replacement is not None:
            distinct.append((replacement.double() - mean)[None])
        root = _root_of_centred(torch.cat(distinct), max(n_replaced, 1)) / (n - 1) ** 0.5
    return Moments(n, mean, group.all_reduce(products) / (n - 1), root)


def _root_of_centred(rows: Tensor, times: int) -> Tensor:
    """A matrix with the products RᵀR of the centred rows, the last of them counted ``times`` over, in one row less.

    Equal rows are one, longer row; and as the rows sum to zero, a reflection that carries the first axis onto the
    vector of ones empties the first row. Left as they are, both would give the trace term eigenvalues of 0 up to 1e-16,
    whose roots are 0 up to 1e-8 only.
    """
    n = len(rows) - 1 + times
    root: Tensor = rows[1:] + rows[0] / (n**0.5 - 1)
    root[-1] *= times**0.5
    return root


def _add_upper_products(products: Tensor, centred: Tensor) -> None:
    """Add centredᵀ centred to a (d, d) tensor, on and above its diagonal only: two thirds of the work."""
    width = -(-centred.shape[1] // 3)
    for start in range(0, centred.shape[1], width):
        products[start : start + width, start:].addmm_(centred[:, start : start + width].t(), centred[:, start:])


def token_chunks(
    features: Tensor,
    replaced: Tensor | None = None,
    replacement: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Tensor]:
    """Copies of the tokens, some thousand rows at a time (at least one chunk), with replaced rows replaced."""
    for start in range(0, max(len(features), 1), CHUNK_ROWS):
        chunk = features[start : start + CHUNK_ROWS].to(dtype, copy=True)
        if replaced is not None and replacement is not None:
            chunk[replaced[start : start + CHUNK_ROWS]] = replacement.to(dtype)
        yield chunk
