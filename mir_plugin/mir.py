"""From the token features of one layer to its distance, and from all layers to MIR."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.frechet import mean_term, trace_product, trace_term
from mir_plugin.moments import Moments, moments
from mir_plugin.normalize import coordinate_median, outlier_rows, row_norms, text_centric_scale
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures


def layer_distance(features: TokenFeatures, config: MirConfig) -> LayerDistance:
    """Everything the paper computes at one layer.

    Outliers are found and moments taken on the features as they are, and the text-centric scale is applied to the
    moments: the same value as scaling every token first, without a scaled copy.

    Raises:
        MirError: for NaN or infinite features, fewer than two tokens of a modality, or text of norm zero.
    """
    vision_norms = _finite_norms(features.vision, "vision", features)
    text_norms = _finite_norms(features.text, "text", features)
    scale = text_centric_scale(text_norms) if config.normalize else torch.ones((), dtype=torch.float64)
    vision, n_vision_outliers = modality_moments(features.vision, vision_norms, config)
    text, n_text_outliers = modality_moments(features.text, text_norms, config)
    vision, text = vision.scaled(scale), text.scaled(scale)

    means = mean_term(vision, text).item()
    trace_vision, trace_text = vision.cov.trace().item(), text.cov.trace().item()
    term = trace_term(vision, text)
    product = trace_product(vision, text).item()
    without_trace_term = means + trace_vision + trace_text
    return LayerDistance(
        layer=features.layer,
        # The distance of a set to itself is 0 up to rounding of either sign; a squared distance is never negative.
        distance=max(0.0, without_trace_term - 2 * term.value.item()),
        distance_published=without_trace_term - 2 * product,
        distance_published_upper=without_trace_term,
        mean_term=means,
        trace_vision=trace_vision,
        trace_text=trace_text,
        trace_term=term.value.item(),
        trace_product=product,
        trace_route=term.route,
        n_vision_tokens=len(features.vision),
        n_text_tokens=len(features.text),
        n_vision_outliers=n_vision_outliers,
        n_text_outliers=n_text_outliers,
        scale=float(scale),
        mean_norm_vision=vision_norms.mean().item(),
        mean_norm_text=text_norms.mean().item(),
        norm_ratio=(vision_norms.mean() / text_norms.mean()).item(),
        mean_cosine=_cosine(vision.mean, text.mean),
        effective_rank_vision=effective_rank(vision),
        effective_rank_text=effective_rank(text),
    )


def modality_moments(features: Tensor, norms: Tensor, config: MirConfig) -> tuple[Moments, int]:
    """Moments of one modality after outlier handling, and how many tokens were outliers."""
    if config.outliers == "none":
        return moments(features), 0
    outliers = outlier_rows(norms, config.n_sigma)
    n_outliers = int(outliers.sum())
    if n_outliers == 0:
        return moments(features), 0
    if config.outliers == "remove":
        return moments(features[~outliers]), n_outliers
    return moments(features, replaced=outliers, replacement=coordinate_median(features)), n_outliers


def effective_rank(one: Moments) -> float:
    """Participation ratio (Tr Σ)² / Tr(Σ²): d for an isotropic Gaussian, 1 for a line, 0 for a point."""
    square = one.cov.square().sum()
    return (one.cov.trace().square() / square).item() if square > 0 else 0.0


def mir(distances: Sequence[float]) -> float:
    """log10 of the sum of the layer distances; dimensionless, lower is better.

    Raises:
        MirError: if the sum is not positive, so that it has no logarithm.

    >>> mir([40.0, 60.0])
    2.0
    """
    total = math.fsum(distances)
    if not total > 0:
        raise MirError(
            f"the layer distances sum to {total:g}, which has no logarithm: vision and text tokens have the same "
            "mean and covariance in every layer. Check that the samples hold images and texts."
        )
    return math.log10(total)


def _finite_norms(features: Tensor, modality: str, layer: TokenFeatures) -> Tensor:
    norms = row_norms(features)
    finite = torch.isfinite(norms)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        counts = torch.tensor(layer.vision_counts if modality == "vision" else layer.text_counts)
        sample = int(torch.searchsorted(counts.cumsum(0), torch.tensor(row), right=True))
        raise MirError(
            f"{int((~finite).sum())} of {len(norms)} {modality} tokens at layer {layer.layer} are NaN or infinite, "
            f"the first in sample number {sample}. The weights may be damaged, or float16 overflowed: "
            "try --dtype bfloat16 or float32."
        )
    return norms


def _cosine(one: Tensor, other: Tensor) -> float | None:
    length = one.norm() * other.norm()
    return (one @ other / length).item() if length > 0 else None
