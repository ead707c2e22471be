"""Text-centric normalization and outlier handling: the two preparations of the paper, on one modality at one layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.processes import ALONE, Group

# Rows per step wherever features are converted to float64: 4096 rows of a 4096-wide model are 134 MB.
CHUNK_ROWS = 4096


def row_norms(features: Tensor) -> Tensor:
    """L2 norm of each row in float64, (tokens, d) → (tokens,); never holds a float64 copy of all features."""
    norms = torch.empty(len(features), dtype=torch.float64, device=features.device)
    # Into one tensor: small results allocated between the copies would keep the heap from using their room again.
    for rows, own in zip(features.split(CHUNK_ROWS), norms.split(CHUNK_ROWS), strict=True):
        torch.linalg.vector_norm(rows.double(), dim=1, out=own)
    return norms


def text_centric_scale(text_norms: Tensor) -> Tensor:
    """Factor that brings text tokens to unit mean L2 norm: α = T / Σᵢ ‖tᵢ‖₂.

    Applied to both modalities, so that their distance is measured in units of the text tokens' length.

    Args:
        text_norms: L2 norms of all T text tokens at one layer, (tokens,).
    Returns:
        Scalar, float64, positive.
    Raises:
        MirError: if there is no text token, or all have norm zero.
    Reference: Huang et al. 2024, arXiv:2410.07167; mir.py line 142 of the released script (there in float32).

    >>> text_centric_scale(torch.tensor([5.0, 15.0])).item()
    0.1
    """
    if text_norms.numel() == 0:
        raise MirError("no text token to normalize by. Every sample needs text after its image.")
    mean_norm = text_norms.double().mean()
    if mean_norm == 0:
        raise MirError("all text tokens have norm zero, so there is no length to normalize by. Check the checkpoint.")
    return 1 / mean_norm


def outlier_rows(norms: Tensor, n_sigma: float, among: Tensor | None = None) -> Tensor:
    """Rows with |norm − median(norm)| > n_sigma · std(norm), (tokens,) → bool (tokens,).

    Median and deviation are those of ``among``, (all tokens,), where these tokens are only a part of the set.

    The median of an even number of norms is the lower middle one (``torch.median``) and the standard deviation is
    unbiased, as in the released script (mir_util.py lines 77-88).

    >>> outlier_rows(torch.tensor([1.0] * 20 + [9.0]), n_sigma=3.0).nonzero().flatten().tolist()
    [20]
    """
    among = norms if among is None else among
    if among.numel() < 2:
        return torch.zeros_like(norms, dtype=torch.bool)
    return (norms - among.median()).abs() > n_sigma * among.std()


def coordinate_median(features: Tensor, group: Group = ALONE) -> Tensor:
    """Lower median of each coordinate over the tokens of all processes, (tokens, d) → (d,), in the features' dtype.

    Coordinates are taken in blocks made contiguous along the tokens: selecting along a strided axis is several times
    slower, and a whole transposed copy would double the memory of a layer. Several processes share each block's
    coordinates, so every median is taken over all tokens and is exact.
    """
    medians = features.new_empty(features.shape[1])
    width = (64 if features.device.type == "cpu" else 1024) * group.size  # a GPU takes one thread block a coordinate
    for block, own in zip(features.split(width, dim=1), medians.split(width), strict=True):
        # First contiguous, then transposed: torch transposes whole matrices in tiles, and parts element by element.
        columns = group.all_to_all_columns(block).contiguous().t().clone(memory_format=torch.contiguous_format)
        own.copy_(group.all_gather(_lower_medians(columns)))
    return medians


@contextmanager
def _any_index_of_equal_values() -> Iterator[None]:
    """Torch's deterministic mode off: on a GPU it refuses medians for their indices, which nobody reads here."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def _lower_medians(rows: Tensor) -> Tensor:
    """Lower median of each row, (rows, n) → (rows,); the order of the rows' values is lost."""
    if rows.device.type != "cpu":
        with _any_index_of_equal_values():
            return rows.median(dim=1).values
    # NumPy selects with vector instructions, in a third of torch's time; half precision is exact in float32.
    values = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    middle = (values.shape[1] - 1) // 2
    values.partition(middle, axis=1)
    return torch.from_numpy(values[:, middle].copy()).to(rows.dtype)
