"""From the token features of one layer to its distance, and from all layers to MIR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.metric.frechet import (
    TraceTerm,
    mean_term,
    trace_product,
    trace_term,
)
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.normalize import (
    coordinate_median,
    outlier_rows,
    row_norms,
    text_centric_scale,
)
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures


@dataclass(frozen=True)
class PreparedTokens:
    """One modality at one layer after outlier handling; rows to be replaced are marked, not copied.

    Attributes:
        features: (tokens, d), this process's rows, removed ones left out.
        counts: rows per sample of ``features``, (samples,).
        replaced: bool (tokens,), rows that count as ``replacement``, (d,); None where no row does.
        n_outliers: in all processes.
        moments: of all processes, not scaled.
    """

    features: Tensor
    counts: Tensor
    replaced: Tensor | None
    replacement: Tensor | None
    n_outliers: int
    moments: Moments


@dataclass(frozen=True)
class PreparedLayer:
    """Both modalities at one layer, ready for the distance.

    Attributes:
        scale: text-centric scale; the moments are not multiplied by it yet.
        vision_norms, text_norms: of all tokens of all processes, outliers included.
        own_text_norms: of this process's text tokens, in sample order, ``own_text_counts`` for each sample.
    """

    layer: int
    vision: PreparedTokens
    text: PreparedTokens
    scale: Tensor
    vision_norms: Tensor
    text_norms: Tensor
    own_text_norms: Tensor
    own_text_counts: Tensor


def layer_distance(features: TokenFeatures, config: MirConfig) -> LayerDistance:
    """Everything the paper computes at one layer; raises as ``prepared_layer``."""
    return distance_at(prepared_layer(features, config))


def prepared_layer(features: TokenFeatures, config: MirConfig, group: Group = ALONE) -> PreparedLayer:
    """Normalization, outlier handling and moments of one layer.

    Outliers are found and moments taken on the features as they are, and the text-centric scale is applied to the
    moments: the same value as scaling every token first, without a scaled copy.

    Args:
        group: the processes whose samples are taken together; ``features`` are this one's.
    Raises:
        MirError: for NaN or infinite features, fewer than two tokens of a modality, or text of norm zero.
    """
    with group.agreed(f"layer {features.layer}"):
        own_vision_norms = _finite_norms(features.vision, "vision", features)
        own_text_norms = _finite_norms(features.text, "text", features)
    vision_norms, text_norms = group.all_gather(own_vision_norms), group.all_gather(own_text_norms)
    scale = text_centric_scale(text_norms)  # also refuses text of norm zero where it is not normalized
    own_text_counts = torch.tensor(features.text_counts, dtype=torch.long, device=features.text.device)
    return PreparedLayer(
        layer=features.layer,
        vision=_prepared_tokens(features.vision, features.vision_counts, own_vision_norms, vision_norms, config, group),
        text=_prepared_tokens(features.text, features.text_counts, own_text_norms, text_norms, config, group),
        scale=scale if config.normalize else torch.ones_like(scale),
        vision_norms=vision_norms,
        text_norms=text_norms,
        own_text_norms=own_text_norms,
        own_text_counts=own_text_counts,
    )


def _prepared_tokens(
    features: Tensor, counts: Sequence[int], own_norms: Tensor, norms: Tensor, config: MirConfig, group: Group
) -> PreparedTokens:
    rows_per_sample = torch.tensor(counts, dtype=torch.long, device=features.device)
    n_outliers = 0 if config.outliers == "none" else int(outlier_rows(norms, config.n_sigma).sum())
    if n_outliers == 0:
        return PreparedTokens(features, rows_per_sample, None, None, 0, moments(features, group=group))
    outliers = outlier_rows(own_norms, config.n_sigma, among=norms)
    if config.outliers == "remove":
        kept = features[~outliers]
        rows_per_sample = per_sample(~outliers, rows_per_sample)
        return PreparedTokens(kept, rows_per_sample, None, None, n_outliers, moments(kept, group=group))
    median = coordinate_median(features, group)
    return PreparedTokens(
        features, rows_per_sample, outliers, median, n_outliers, moments(features, outliers, median, group)
    )


def per_sample(values: Tensor, counts: Tensor) -> Tensor:
    """Sum of the values of each sample's tokens: (tokens,) and (samples,) → (samples,), in the values' type or int64.

    >>> per_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 1])).tolist()
    [3.0, 0.0, 4.0]
    """
    values = values.long() if values.dtype == torch.bool else values
    sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add_(0, sample, values)


def distance_at(prepared: PreparedLayer, term: TraceTerm | None = None) -> LayerDistance:
    """The Fréchet distance of one layer's scaled moments, its parts, and what describes the two sets of tokens.

    Args:
        term: the trace term of the moments before scaling, where it is known already.
    """
    vision, text = prepared.vision.moments.scaled(prepared.scale), prepared.text.moments.scaled(prepared.scale)
    means = mean_term(vision, text).item()
    trace_vision, trace_text = vision.cov.trace().item(), text.cov.trace().item()
    term = term or trace_term(prepared.vision.moments, prepared.text.moments)
    trace = (term.value * prepared.scale**2).item()
    product = trace_product(vision, text).item()
    without_trace_term = means + trace_vision + trace_text
    return LayerDistance(
        layer=prepared.layer,
        # The distance of a set to itself is 0 up to rounding of either sign; a squared distance is never negative.
        distance=max(0.0, without_trace_term - 2 * trace),
        distance_published=without_trace_term - 2 * product,
        distance_published_upper=without_trace_term,
        mean_term=means,
        trace_vision=trace_vision,
        trace_text=trace_text,
        trace_term=trace,
        trace_product=product,
        trace_route=term.route,
        n_vision_tokens=len(prepared.vision_norms),
        n_text_tokens=len(prepared.text_norms),
        n_vision_outliers=prepared.vision.n_outliers,
        n_text_outliers=prepared.text.n_outliers,
        scale=float(prepared.scale),
        mean_norm_vision=prepared.vision_norms.mean().item(),
        mean_norm_text=prepared.text_norms.mean().item(),
        norm_ratio=(prepared.vision_norms.mean() / prepared.text_norms.mean()).item(),
        mean_cosine=_cosine(vision.mean, text.mean),
        effective_rank_vision=effective_rank(vision),
        effective_rank_text=effective_rank(text),
    )


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
        named = f"sample {layer.sample_ids[sample]}" if layer.sample_ids else f"sample number {sample}"
        raise MirError(
            f"{int((~finite).sum())} of {len(norms)} {modality} tokens at layer {layer.layer} are NaN or infinite, the "
            f"first in {named}. The weights or the image processor's settings may be damaged, or float16 overflowed: "
            "try --dtype bfloat16 or float32."
        )
    return norms


def _cosine(one: Tensor, other: Tensor) -> float | None:
    length = one.norm() * other.norm()
    return (one @ other / length).item() if length > 0 else None
