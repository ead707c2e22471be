"""Text-centric normalization and outlier handling: the paper's two preparations of the tokens of one layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mir_plugin.errors import MirError


def row_norms(tokens: Tensor) -> Tensor:
    """L2 norm of each token in float64, (tokens, d) → (tokens,)."""
    norms: Tensor = torch.linalg.vector_norm(tokens.double(), dim=1)
    return norms


def text_centric_scale(text: Tensor) -> Tensor:
    """Factor that brings text tokens to unit mean L2 norm: α = T / Σᵢ ‖tᵢ‖₂.

    Applied to both modalities, so that their distance is measured in units of the text tokens' length.

    Args:
        text: all T text tokens at one layer, (tokens, d), any float dtype.
    Returns:
        Scalar, float64, positive.
    Raises:
        MirError: if there is no text token, or all have norm zero.
    Reference: Huang et al. 2024, arXiv:2410.07167; mir.py line 142 of the released script (there in float32).

    >>> text_centric_scale(torch.tensor([[3.0, 4.0], [9.0, 12.0]])).item()
    0.1
    """
    return scale_from_norms(row_norms(text))


def scale_from_norms(text_norms: Tensor) -> Tensor:
    """The same from the L2 norms of the text tokens, (tokens,)."""
    if text_norms.numel() == 0:
        raise MirError("there are no text tokens to normalize by. Every sample needs text after its image.")
    mean_norm = text_norms.double().mean()
    if mean_norm == 0:
        raise MirError("all text tokens have norm zero, so there is no length to normalize by. Check the checkpoint.")
    return 1 / mean_norm


def outlier_rows(norms: Tensor, n_sigma: float = 3.0, among: Tensor | None = None) -> Tensor:
    """Tokens with |norm − median(norm)| > n_sigma · std(norm), (tokens,) → bool (tokens,).

    The median of an even number of norms is the lower middle one (``torch.median``) and the standard deviation is
    unbiased, as in the released script (mir_util.py lines 77-88).

    Args:
        among: norms of the whole set, (all tokens,), where ``norms`` is only a part of it.

    >>> outlier_rows(torch.tensor([1.0] * 20 + [9.0]), n_sigma=3.0).nonzero().flatten().tolist()
    [20]
    """
    among = norms if among is None else among
    if among.numel() < 2:
        return torch.zeros_like(norms, dtype=torch.bool)
    return (norms - among.median()).abs() > n_sigma * among.std()


def share_of_longest(norms: Tensor, fraction: float = 0.05) -> Tensor:
    """Part of the sum of squared norms that the longest tokens have, (tokens,) → scalar float64; NaN where all are 0.

    Among tokens of one length it is the fraction itself.

    >>> share_of_longest(torch.ones(40)).item(), share_of_longest(torch.tensor([1.0] * 19 + [9.0])).item()
    (0.05, 0.81)
    """
    squares = norms.double().square()
    return squares.topk(math.ceil(fraction * len(squares))).values.sum() / squares.sum()


def coordinate_median(tokens: Tensor) -> Tensor:
    """Lower median of each coordinate, (tokens, d) → (d,), in the tokens' dtype."""
    return lower_medians(tokens.t().contiguous())  # selecting along a strided axis is several times slower


def replace_outliers(tokens: Tensor, n_sigma: float = 3.0) -> Tensor:
    """Replace outliers by the coordinate-wise median of all tokens, as the released script does; (tokens, d) → same."""
    outliers = outlier_rows(row_norms(tokens), n_sigma)
    return torch.where(outliers[:, None], coordinate_median(tokens), tokens)


def remove_outliers(tokens: Tensor, n_sigma: float = 3.0) -> Tensor:
    """Drop outliers, as the paper's text says; (tokens, d) → (remaining tokens, d)."""
    return tokens[~outlier_rows(row_norms(tokens), n_sigma)]


def lower_medians(rows: Tensor) -> Tensor:
    """Lower median of each row, (rows, n) → (rows,)."""
    with _any_index_of_equal_values():
        return rows.median(dim=1).values


@contextmanager
def _any_index_of_equal_values() -> Iterator[None]:
    """Torch's deterministic mode off: on a GPU it refuses medians for their indices, which are not used here."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
