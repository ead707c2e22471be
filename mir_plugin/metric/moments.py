"""Count, mean and covariance of the tokens of one modality at one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mir_plugin.errors import MirError


@dataclass(frozen=True)
class Moments:
    """First two moments of a set of tokens, in float64.

    Attributes:
        n: number of tokens, at least 2.
        mean: (d,).
        cov: (d, d), unbiased.
        root: (r, d) with rootᵀ root = cov, if the covariance is known to have a rank r < d; None otherwise. It makes
            the trace term cheap, and exact: directions in which only rounding is left have no row.
    """

    n: int
    mean: Tensor
    cov: Tensor
    root: Tensor | None = None

    def scaled(self, factor: Tensor | float) -> Moments:
        """Moments of the tokens multiplied by ``factor``."""
        root = None if self.root is None else self.root * factor
        return Moments(self.n, self.mean * factor, self.cov * factor**2, root)

    def to(self, device: torch.device | str) -> Moments:
        """The same on another device."""
        root = None if self.root is None else self.root.to(device)
        return Moments(self.n, self.mean.to(device), self.cov.to(device), root)


def moments(tokens: Tensor) -> Moments:
    """Mean and unbiased covariance of (tokens, d), any float dtype, computed in float64.

    The covariance is that of centred tokens: formed as E[xx] − μμ it would lose all digits in a coordinate that is much
    larger than its spread, which massive activations are.

    Raises:
        MirError: for fewer than two tokens.
    """
    n, d = tokens.shape
    require_two(n)
    tokens = tokens.double()
    mean = tokens.mean(dim=0)
    centred = tokens - mean
    cov = centred.t() @ centred / (n - 1)
    # Replaced outliers are equal rows: with up to 2d tokens they may leave fewer than d + 1 that differ.
    if n <= 2 * d:
        distinct, counts = tokens.unique(dim=0, return_counts=True)
        if len(distinct) <= d:
            return Moments(n, mean, cov, root_of_centred(distinct - mean, counts) / (n - 1) ** 0.5)
    return Moments(n, mean, cov)


def require_two(n: int) -> None:
    """Raise MirError unless there are two tokens to take a covariance of."""
    if n < 2:
        raise MirError(f"{n} token(s) of one modality; a covariance needs at least 2. Use more or longer samples.")


def root_of_centred(rows: Tensor, counts: Tensor) -> Tensor:
    """R with RᵀR = Σᵢ countᵢ xᵢ xᵢᵀ for rows with Σᵢ countᵢ xᵢ = 0; (r, d) and (r,) → (r − 1, d).

    Repeated rows are one longer row. As the sum vanishes, the reflection that carries the first axis onto the vector u
    of the √countᵢ empties the first row. Without these two steps the trace term would have eigenvalues of 0 up to
    1e-16, whose roots are 0 up to 1e-8 only.
    """
    lengths = counts.double().sqrt()
    u = lengths / lengths.norm()
    stretched = rows * lengths[:, None]
    root: Tensor = stretched[1:] + stretched[0] * (u[1:] / (1 - u[0]))[:, None]
    return root


def length(one: Moments) -> Tensor:
    """Root-mean-square length of a token, (‖μ‖² + Tr Σ)^½, scalar.

    With it the squared Fréchet distance is (l_v − l_t)² + 2 l_v l_t (1 − κ). κ is the largest correlation that tokens
    of the two Gaussians can have when they are paired: (μ_v · μ_t + Tr((Σ_v Σ_t)^½)) / (l_v l_t), whatever the lengths.
    """
    return (one.mean.square().sum() + one.cov.trace()).sqrt()


def effective_rank(one: Moments) -> Tensor:
    """Participation ratio (Tr Σ)² / Tr(Σ²), scalar: d for an isotropic Gaussian, 1 for a line, 0 for a point."""
    square = one.cov.square().sum()
    return torch.where(square > 0, one.cov.trace().square() / square, 0.0)
