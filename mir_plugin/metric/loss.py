"""The layer distance as a loss: gradients of the exact Fréchet distance with respect to the tokens themselves.

``frechet.py`` measures and takes no gradients; here they are right, where automatic differentiation of its formulas is
not: the root of an eigenvalue that is 0 has no finite slope, and covariances of fewer tokens than dimensions, or with a
coordinate that never changes, have such eigenvalues always.

Let R be the centred tokens over √(n − 1), so that RᵀR = Σ. The trace term is the sum of the singular values of
R_v R_tᵀ, and with its singular vectors U, V the gradients are U Vᵀ R_t for R_v and V Uᵀ R_v for R_t. Where a singular
value is 0 the term has a kink, like |x|, whose slopes average to 0: those vectors are left out, which gives the
gradient of smallest norm, and the one that central differences give.

Outliers are not handled (their median is no loss) and each call sees one batch, so values are not those of ``mir run``:
with few tokens covariances lack rank, and distances come out too large. To report a MIR, measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mir_plugin.errors import MirError
from mir_plugin.metric.frechet import way_on
from mir_plugin.metric.polar import polar


def frechet_loss(vision: Tensor, text: Tensor) -> Tensor:
    """‖μ_v − μ_t‖² + Tr Σ_v + Tr Σ_t − 2 Tr((Σ_v Σ_t)^½) of two sets of tokens; differentiable once in both.

    Costs a singular value decomposition of (min(n_v, d), min(n_t, d)), in float64.

    Args:
        vision: (tokens, d), at least two tokens, any float dtype.
        text: the same of the text tokens.
    Returns:
        Scalar, float64. With singular covariances too, its gradient is exact (see above).
    Raises:
        MirError: for fewer than two tokens of a modality.

    >>> apart = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> frechet_loss(apart, apart + torch.tensor([0.0, 2.0])).item()
    4.0
    """
    vision_mean, vision_root = _mean_and_root(vision, "vision")
    text_mean, text_root = _mean_and_root(text, "text")
    mean_term = (vision_mean - text_mean).square().sum()
    return mean_term + vision_root.square().sum() + text_root.square().sum() - 2 * trace_term(vision_root, text_root)


def layer_loss(vision: Tensor, text: Tensor) -> Tensor:
    """The distance after text-centric normalization: both modalities in units of the text tokens' mean norm.

    The normalization is differentiated too: text tokens cannot lower the distance by growing.

    Args:
        vision: hidden states of one layer, (tokens, d).
        text: the same of the text tokens.
    Raises:
        MirError: for fewer than two tokens of a modality.
    """
    scale = 1 / torch.linalg.vector_norm(text.double(), dim=1).mean()
    return frechet_loss(vision.double() * scale, text.double() * scale)


def mir_loss(hidden_states: Sequence[Tensor], vision_mask: Tensor, text_mask: Tensor) -> Tensor:
    """log10 of the sum of all layer distances of one batch: a regulariser that pulls the modalities together.

    Args:
        hidden_states: (samples, tokens, d) per layer 1..L, the last after the final norm: what transformers returns
            with ``output_hidden_states=True``, without the first entry.
        vision_mask: bool (samples, tokens).
        text_mask: bool (samples, tokens).
    Returns:
        Scalar, float64.
    Raises:
        MirError: for fewer than two tokens of a modality in the batch.
    """
    distances = [layer_loss(state[vision_mask], state[text_mask]) for state in hidden_states]
    return torch.stack(distances).sum().log10()


def trace_term(vision_root: Tensor, text_root: Tensor) -> Tensor:
    """Tr((Σ_v Σ_t)^½) from any roots with RᵀR = Σ, (rows, d) each, float64; differentiable once in both."""
    term: Tensor = _TraceTerm.apply(vision_root, text_root)
    return term


def _mean_and_root(tokens: Tensor, modality: str) -> tuple[Tensor, Tensor]:
    if len(tokens) < 2:
        raise MirError(
            f"{len(tokens)} {modality} token(s) in the batch; a covariance needs at least 2. Leave batches without "
            "images, or without text after them, out of this loss."
        )
    states = tokens.double()
    mean = states.mean(dim=0)
    return mean, (states - mean) / (len(tokens) - 1) ** 0.5


class _Reduced(NamedTuple):
    """A root as ``basis @ small``: orthonormal columns and at most d rows. Few rows stay as they are, without basis."""

    small: Tensor
    basis: Tensor | None

    def spread(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else self.basis @ rows


def _reduced(root: Tensor) -> _Reduced:
    if root.shape[0] <= root.shape[1]:
        return _Reduced(root, None)
    basis, small = torch.linalg.qr(root)
    return _Reduced(small, basis)


def _by_singular_values(cross: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the singular values and U Vᵀ, without the vectors whose singular value is rounding."""
    u, values, vt = torch.linalg.svd(cross, full_matrices=False)
    # As in numpy's matrix_rank: what is below is rounding.
    rank = int((values > values.max() * max(cross.shape) * torch.finfo(values.dtype).eps).sum())
    return values.sum(), u[:, :rank] @ vt[:rank]


def _by_polar(cross: Tensor) -> tuple[Tensor, Tensor]:
    """The same without singular values."""
    if cross.shape[0] < cross.shape[1]:
        total, factor = _by_polar(cross.t())
        return total, factor.t()
    parts = polar(cross)
    return parts.positive.trace(), parts.without_rounding()


class _TraceTerm(torch.autograd.Function):
    """Sum of singular values of R_v R_tᵀ, with the gradient of smallest norm where some are 0."""

    @staticmethod
    def forward(ctx: Any, vision_root: Tensor, text_root: Tensor) -> Tensor:
        vision, text = _reduced(vision_root), _reduced(text_root)
        cross = vision.small @ text.small.t()
        total, factor = (_by_polar if way_on(cross.device) == "polar" else _by_singular_values)(cross)
        needs_vision, needs_text = ctx.needs_input_grad
        ctx.save_for_backward(
            vision.spread(factor @ text.small) if needs_vision else None,
            text.spread(factor.t() @ vision.small) if needs_text else None,
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        vision_gradient, text_gradient = ctx.saved_tensors
        return (
            None if vision_gradient is None else slope * vision_gradient,
            None if text_gradient is None else slope * text_gradient,
        )
