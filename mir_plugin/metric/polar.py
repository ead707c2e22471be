"""The trace term and the transport by a polar decomposition: the route for accelerators.

With roots R (RᵀR = Σ) and A = R_v R_tᵀ = U H, U with orthonormal columns and H positive semi-definite, the trace term
Tr((Σ_v Σ_t)^½) is the sum of A's singular values, so Tr H. QDWH finds U in six steps of matrix products, QR and
Cholesky, which accelerators run at full speed; no eigenvalue, eigenvector or singular value is computed.

Reference: Nakatsukasa, Bai and Gygi 2010, SIAM J. Matrix Anal. Appl. 31(5), 2700-2720; Nakatsukasa and Higham 2013,
SIAM J. Sci. Comput. 35(3), A1325-A1349.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mir_plugin.metric.moments import Moments

EPSILON = torch.finfo(torch.float64).eps
Root = Callable[[Tensor, "Tensor | float"], Tensor]


class Polar(NamedTuple):
    """A = unitary @ positive, (m, n) and (n, n), m ≥ n; ``positive`` is symmetric and positive semi-definite.

    Where a singular value is 0 up to rounding, ``unitary`` has an arbitrary part of its singular vectors, from none to
    all; ``without_rounding`` removes them.
    """

    unitary: Tensor
    positive: Tensor

    def without_rounding(self) -> Tensor:
        """The unitary factor on the singular vectors whose singular value is not rounding: U P, P a projector."""
        root = root_of(self.positive, _rounding(self.positive))
        if len(root) == len(self.positive):
            return self.unitary
        factor = torch.linalg.cholesky(root @ root.t())
        return self.unitary @ root.t() @ torch.cholesky_solve(root, factor)


def polar(matrix: Tensor) -> Polar:
    """Polar decomposition of a float64 matrix with at least as many rows as columns, of any rank."""
    norm = torch.linalg.matrix_norm(matrix)  # Frobenius: at least the largest singular value
    x = matrix / norm.clamp_min(torch.finfo(torch.float64).tiny)
    for a, b, c in _weights():
        # The cheaper form loses the digits that c has.
        x = _step_by_qr(x, a, b, c) if c > 100 else _step_by_cholesky(x, a, b, c)
    positive = x.t() @ matrix
    return Polar(x, (positive + positive.t()) / 2)


def trace_term_by_polar(vision: Moments, text: Moments) -> Tensor:
    """Tr((Σ_v Σ_t)^½), scalar float64."""
    guess = _Guess()
    term = _trace_term(vision, text, guess)
    return term if guess.was_right() else _trace_term(vision, text, root_of)


def _trace_term(vision: Moments, text: Moments, root: Root) -> Tensor:
    longer, shorter = sorted((root_of_covariance(one, root) for one in (vision, text)), key=len, reverse=True)
    return polar(longer @ shorter.t()).positive.trace()


def transport_by_polar(vision: Moments, text: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (r, d) of T and T⁻¹, as in ``frechet.Transport``, and the trace term.

    A centred vision token is x = R_vᵀ a with a = R_v⁻ᵀ x, and xᵀ T x = aᵀ U H Uᵀ a; a centred text token is y = R_tᵀ b,
    and yᵀ T⁻¹ y = bᵀ H b. Roots of fewer than d rows have a pseudo-inverse.
    """
    guess = _Guess()
    maps = _transport(vision, text, guess)
    return maps if guess.was_right() else _transport(vision, text, root_of)


def _transport(vision: Moments, text: Moments, root: Root) -> tuple[Tensor, Tensor, Tensor]:
    vision_root, text_root = root_of_covariance(vision, root), root_of_covariance(text, root)
    if len(vision_root) < len(text_root):
        to_vision, to_text, term = _transport(text, vision, root)
        return to_text, to_vision, term
    unitary, positive = polar(vision_root @ text_root.t())
    half = root(positive, _rounding(positive))
    to_text = half @ unitary.t() @ _transposed_inverse(vision_root)
    return to_text, half @ _transposed_inverse(text_root), positive.trace()


class _Guess:
    """Roots by Cholesky, taken for granted: whether all of them were sound is asked once, at the end.

    The host would otherwise wait for the device at each root, to decide about pivoting, which is rarely needed.
    """

    def __init__(self) -> None:
        self._sound: list[Tensor] = []

    def __call__(self, symmetric: Tensor, smallest: Tensor | float) -> Tensor:
        """As ``root_of``, of a matrix that is not singular."""
        lower, failed = torch.linalg.cholesky_ex(symmetric)
        self._sound += [failed == 0, (lower.diagonal().square() > smallest).all()]
        upper: Tensor = lower.t()
        return upper

    def was_right(self) -> bool:
        """Whether no matrix was singular; waits for the device, if there was any."""
        return not self._sound or bool(torch.stack(self._sound).all())


def root_of_covariance(one: Moments, root: Root | None = None) -> Tensor:
    """R with RᵀR = Σ, (r, d), r being the rank: directions in which only rounding is left have no row.

    What is rounding is decided for each coordinate in its own unit: some are a thousand times larger than the rest.

    Args:
        root: as ``root_of``, the default.
    """
    if one.root is not None:
        return one.root
    units = one.cov.diagonal().sqrt()
    # A coordinate that is constant has the rounding of its mean for a spread.
    units = torch.where(units > 4 * EPSILON * one.mean.abs(), units, 0.0)
    inverse = torch.where(units > 0, 1 / units, 0.0)
    return (root or root_of)(one.cov * inverse * inverse[:, None], len(units) * EPSILON) * units


def root_of(symmetric: Tensor, smallest: Tensor | float) -> Tensor:
    """R with RᵀR = S for a positive semi-definite S, (d, d) → (r, d): Cholesky, with pivoting where S is singular.

    Args:
        smallest: pivots that are not larger are rounding.
    """
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    if not failed and (lower.diagonal().square() > smallest).all():
        upper: Tensor = lower.t()
        return upper
    left = symmetric.diagonal().clone()
    rows = torch.zeros_like(symmetric)
    for rank in range(len(symmetric)):
        pivot = int(left.argmax())
        if left[pivot] <= smallest:
            return rows[:rank]
        rows[rank] = (symmetric[pivot] - rows[:rank, pivot] @ rows[:rank]) / left[pivot].sqrt()
        left -= rows[rank].square()
        left[pivot] = 0
    return rows


def _rounding(positive: Tensor) -> Tensor:
    """What counts as 0 on the diagonal of a positive semi-definite matrix."""
    return positive.diagonal().sum() * EPSILON


def _transposed_inverse(root: Tensor) -> Tensor:
    """R⁻ᵀ; where R has fewer rows than columns, the transposed pseudo-inverse: (r, d) → (r, d)."""
    basis, triangle = torch.linalg.qr(root.t())
    inverse: Tensor = torch.linalg.solve_triangular(triangle, basis.t(), upper=True)
    return inverse


def _weights() -> Iterator[tuple[float, float, float]]:
    """Weights of the steps X ← X (a + b XᵀX)(1 + c XᵀX)⁻¹, which carry singular values from ``lowest`` to 1 up to 1.

    They start from the unit of rounding, as smaller singular values add nothing to the trace. A bound that is found
    for the matrix would save one or two of the six steps, and cost as much.
    """
    lowest = EPSILON
    while 1 - lowest > 4 * EPSILON:
        square = lowest**2
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        a = math.sqrt(1 + d) + math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * math.sqrt(1 + d))) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        yield a, b, c
        lowest *= (a + b * square) / (1 + c * square)


def _step_by_qr(x: Tensor, a: float, b: float, c: float) -> Tensor:
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    upper, lower = torch.linalg.qr(torch.cat([c**0.5 * x, identity])).Q.split([len(x), x.shape[1]])
    stepped: Tensor = b / c * x + (a - b / c) / c**0.5 * (upper @ lower.t())
    return stepped


def _step_by_cholesky(x: Tensor, a: float, b: float, c: float) -> Tensor:
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # It cannot fail but for NaN, which then stays NaN; the checked form would make the host wait for the device.
    factor = torch.linalg.cholesky_ex(identity + c * (x.t() @ x)).L
    stepped: Tensor = b / c * x + (a - b / c) * torch.cholesky_solve(x.t(), factor).t()
    return stepped
