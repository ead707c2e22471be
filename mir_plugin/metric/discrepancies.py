"""Other distances between vision and text tokens that the paper sets beside MIR: MMD, KID and mutual information.

Pure functions of plain tensors, computed in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mir_plugin.errors import MirError


class KernelDistances(NamedTuple):
    """Squared kernel distances between two sets of tokens; unbiased, so slightly below 0 where the sets are alike."""

    mmd: float
    kid: float


def kernel_distances(vision: Tensor, text: Tensor) -> KernelDistances:
    """MMD² with a Gaussian kernel and with KID's polynomial kernel, from the same inner products.

    MMD: k(x, y) = exp(−‖x − y‖² / m), m being the median squared distance between any two of the tokens, of either
    modality: the distance does not depend on the features' unit. KID: k(x, y) = (⟨x, y⟩ + 1)³ on features whose text
    tokens have mean norm 1, which is KID's (⟨x, y⟩ / d + 1)³ where coordinates are of order 1, as Inception's are.

    Args:
        vision, text: (m, d) and (n, d), at least two rows each; for KID in units of the text tokens' mean norm.
    Reference: Gretton et al. 2012, lemma 6; Bińkowski et al. 2018.
    """
    if min(len(vision), len(text)) < 2:
        raise MirError(f"{len(vision)} vision and {len(text)} text tokens; a kernel distance needs 2 of each.")
    vision, text = vision.double(), text.double()
    blocks = (vision @ vision.t(), text @ text.t(), vision @ text.t())
    squares = blocks[0].diagonal(), blocks[1].diagonal()
    gaussian = [
        _squared_distances(block, rows, columns)
        for block, rows, columns in zip(blocks, (*squares, squares[0]), (*squares, squares[1]), strict=True)
    ]
    bandwidth = _median_of_pairs(*gaussian)
    if bandwidth == 0:
        raise MirError("more than half of the pairs of tokens are equal, so the Gaussian kernel has no bandwidth.")
    mmd = _squared_mmd(*(block.div_(-bandwidth).exp_() for block in gaussian))
    return KernelDistances(mmd, _squared_mmd(*(block.add_(1).pow_(3) for block in blocks)))


def mutual_information(vision: Tensor, text: Tensor, n_components: int = 5, n_permutations: int = 200) -> float:
    """Mutual information in nats between what the samples' vision tokens and their text tokens say, on average.

    Between single tokens there is none to estimate, as no vision token belongs to a text token. So the unit is the
    sample: the means of its vision and of its text tokens, reduced to their first principal components. Taking those
    as jointly Gaussian gives I = −½ Σ log(1 − ρ²) over the canonical correlations ρ, a lower bound of what is linear.
    Few samples correlate by chance: the mean over random pairings is subtracted, so 0 is expected of samples whose
    image and text have nothing in common, and values may be slightly negative.

    Args:
        vision, text: (samples, d), a sample's mean vision and mean text token in the same row.
        n_components: at most so many principal components of each; fewer where there are fewer directions.
    Raises:
        MirError: for fewer than 4 samples per component: canonical correlations would be chance alone.
    """
    n_samples = len(vision)
    if n_samples < 4 * n_components:
        raise MirError(
            f"{n_samples} samples; {4 * n_components} are needed for {n_components} components of each modality."
        )
    one, other = _whitened_components(vision, n_components), _whitened_components(text, n_components)
    generator = torch.Generator().manual_seed(0)
    by_chance = [torch.randperm(n_samples, generator=generator) for _ in range(n_permutations)]
    cross = torch.stack(
        [one.t() @ other[pairing.to(other.device)] for pairing in (torch.arange(n_samples), *by_chance)]
    )
    # Rounding may carry a correlation of 1 beyond it; 1 itself would be infinite information.
    correlations = torch.linalg.svdvals(cross).clamp_max(math.sqrt(1 - 1e-12))
    information = -0.5 * torch.log1p(-correlations.square()).sum(dim=1)
    return float(information[0] - information[1:].mean())


def _squared_distances(products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """‖x − y‖² from ⟨x, y⟩, ‖x‖² and ‖y‖²; rounding never makes one negative."""
    return torch.add(rows[:, None], columns[None]).sub_(products, alpha=2).clamp_min_(0)


def _median_of_pairs(vision: Tensor, text: Tensor, across: Tensor) -> Tensor:
    """Lower median over all pairs of different tokens, each pair once."""
    pairs = [within[i, i + 1 :] for within in (vision, text) for i in range(len(within) - 1)]
    return torch.cat([*pairs, across.flatten()]).median()


def _squared_mmd(vision: Tensor, text: Tensor, across: Tensor) -> float:
    """Unbiased: a token's similarity with itself does not count."""
    return float(_mean_off_diagonal(vision) + _mean_off_diagonal(text) - 2 * across.mean())


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    mean: Tensor = (kernel.sum() - kernel.trace()) / (n * (n - 1))
    return mean


def _whitened_components(rows: Tensor, n_components: int) -> Tensor:
    """First principal components, orthonormal over the samples: (samples, d) → (samples, at most n_components)."""
    centred = rows.double() - rows.double().mean(dim=0)
    components: Tensor
    components, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    n_real = int((lengths > 1e-10 * lengths[0]).sum())
    return components[:, : min(n_components, n_real)]
