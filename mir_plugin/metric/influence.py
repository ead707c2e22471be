"""How much each sample moves a layer's distance: its influence, from one more pass over the layer's features.

The distance is a smooth function of the samples' weights (all 1). A sample's influence is the derivative with respect
to its weight: what the infinitesimal jackknife needs instead of one measurement per left-out sample. The trace term's
derivative is known in closed form from the optimal transport map between the two Gaussians:
d Tr((Σ_v Σ_t)^½) = ½⟨T, dΣ_v⟩ + ½⟨T⁻¹, dΣ_t⟩.

Outlier thresholds and the median that replaces outliers are held fixed: few rows depend on them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mir_plugin.metric.frechet import Transport
from mir_plugin.metric.layer import PreparedLayer, PreparedTokens, per_sample
from mir_plugin.metric.moments import token_chunks
from mir_plugin.processes import ALONE, Group


def sample_influences(
    prepared: PreparedLayer, maps: Transport, distance: float, *, normalized: bool, group: Group = ALONE
) -> Tensor:
    """Derivative of a layer's distance with respect to every sample's weight, (samples of all processes,), float64.

    They sum to zero: weighting all samples alike changes nothing.

    Args:
        maps: the transport between the layer's moments.
        distance: the layer's distance, scaled.
        normalized: whether the text-centric scale, which depends on the samples too, is part of the distance.
    """
    vision, text = prepared.vision, prepared.text
    gap = vision.moments.mean - text.moments.mean
    own = torch.stack(
        [
            per_sample(_contributions(vision, gap, maps.to_text), vision.counts),
            vision.counts.double(),
            per_sample(_contributions(text, -gap, maps.to_vision), text.counts),
            text.counts.double(),
            per_sample(prepared.own_text_norms, prepared.own_text_counts),
            prepared.own_text_counts.double(),
        ],
        dim=1,
    )
    from_vision, n_vision, from_text, n_text, text_lengths, n_text_tokens = group.all_gather(own).cpu().unbind(dim=1)
    influences = _centred(from_vision, n_vision) + _centred(from_text, n_text)
    influences *= prepared.scale.cpu() ** 2
    if normalized:
        # α = T / Σ‖t‖ and the distance is proportional to α².
        influences += 2 * distance * (n_text_tokens / n_text_tokens.sum() - text_lengths / text_lengths.sum())
    return influences


def _contributions(tokens: PreparedTokens, gap: Tensor, factor: Tensor) -> Tensor:
    """What each token adds to the derivative of the mean term and the traces, (tokens,); without the scale.

    In float32: a standard error needs no more digits, and these products are what the pass costs.
    """
    n, mean = tokens.moments.n, tokens.moments.mean.float()
    direction = gap.float()
    if factor.device.type == "cpu":
        lengths = partial(_lengths_under, torch.linalg.qr(factor, mode="r").R.float())
    else:
        lengths = partial(_lengths_of_products, factor.float())
    parts = []
    for chunk in token_chunks(tokens.features, tokens.replaced, tokens.replacement, torch.float32):
        centred = chunk.sub_(mean)
        spread = _squared_norms(centred) - lengths(centred)
        parts.append((2 / n * (centred @ direction) + spread / (n - 1)).double())
    return torch.cat(parts)


def _lengths_of_products(factor: Tensor, rows: Tensor) -> Tensor:
    """‖R x‖² of each row x."""
    return _squared_norms(rows @ factor.t())


def _lengths_under(triangle: Tensor, rows: Tensor) -> Tensor:
    """The same under an upper triangular (or trapezoidal) R: block by block, without the zeros.

    It saves half of the products, which on a CPU outweighs the decomposition that makes R a triangle; not on a GPU.
    """
    width = -(-triangle.shape[1] // 4)
    lengths = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(triangle), width):
        carried = rows[:, start:] @ triangle[start : start + width, start:].t()
        lengths += _squared_norms(carried)
    return lengths


def _squared_norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square()


def _centred(sums: Tensor, counts: Tensor) -> Tensor:
    """Per-sample sums of tokens' contributions, less what as many average tokens would have contributed."""
    return sums - counts * (sums.sum() / counts.sum())
