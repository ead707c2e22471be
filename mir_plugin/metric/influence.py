"""How much each token, and so each sample, moves a layer's distance: its influence.

The distance is a smooth function of the samples' weights (all 1). A sample's influence is the derivative with respect
to its weight: what the infinitesimal jackknife needs in place of one measurement for each left-out sample. The
derivative of the trace term follows from the optimal transport map T between the two Gaussians:
d Tr((Σ_v Σ_t)^½) = ½⟨T, dΣ_v⟩ + ½⟨T⁻¹, dΣ_t⟩.

The outlier threshold and the median that replaces outliers are held fixed: few tokens depend on them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_influences(centred: Tensor, carried: Tensor, gap: Tensor, n: int) -> Tensor:
    """What each token adds to the derivative of mean term and traces, (tokens,), up to a constant.

    Args:
        centred: tokens of one modality less their mean, (tokens, d).
        carried: xᵀ T x of each centred token x, (tokens,), T being the map from its modality to the other.
        gap: mean of its modality less that of the other, (d,).
        n: number of tokens of the modality.
    """
    spread = squared_norms(centred) - carried
    return 2 / n * (centred @ gap) + spread / (n - 1)


def squared_norms(rows: Tensor) -> Tensor:
    """‖x‖² of each row, (rows, d) → (rows,)."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square()


def sample_influences(of_tokens: Tensor, counts: Tensor) -> Tensor:
    """Sums over each sample's tokens, less what as many average tokens would have added, (samples,); they sum to 0.

    Args:
        of_tokens: sum of the ``token_influences`` of each sample, (samples,).
        counts: its tokens, (samples,).
    """
    return of_tokens - counts * (of_tokens.sum() / counts.sum())


def influences_through_scale(distance: float, text_lengths: Tensor, n_text: Tensor) -> Tensor:
    """What the text-centric scale adds: α = T / Σ‖t‖, and the distance is proportional to α²; (samples,).

    Args:
        distance: of the layer.
        text_lengths: sum of the norms of each sample's text tokens, (samples,).
        n_text: text tokens of each sample, (samples,).
    """
    return 2 * distance * (n_text / n_text.sum() - text_lengths / text_lengths.sum())
