"""One layer's distance over the samples of all processes, without a copy of the features.

``mir_plugin.metric`` states the metric on whole tensors. ``PooledLayer`` gives the same values where a layer's tokens
fill much of the memory and are spread over processes; a property test compares the two. What it does differently:

* outliers are found and moments taken on the tokens as they are; the text-centric scale is applied to the moments;
* outliers to be replaced are marked, and replaced in copies of some thousand rows at a time;
* norms are gathered, covariances summed, and medians taken over the tokens of all processes;
* the number of tokens of each sample is kept, for the samples' influences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mir_plugin.engine.memory import CHUNK_ROWS
from mir_plugin.errors import MirError
from mir_plugin.metric.frechet import ROUNDING, TraceTerm, Transport, mean_term, trace_product, trace_term, transport
from mir_plugin.metric.influence import influences_through_scale, sample_influences, squared_norms, token_influences
from mir_plugin.metric.moments import Moments, effective_rank, require_two, root_of_centred
from mir_plugin.metric.normalize import lower_medians, outlier_rows, scale_from_norms
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures


@dataclass(frozen=True)
class PooledTokens:
    """One modality at one layer after outlier handling; rows to be replaced are marked, not copied.

    Attributes:
        features: (tokens, d), this process's rows without removed ones.
        counts: rows per sample of ``features``, (samples,).
        replaced: bool (tokens,), rows that count as ``replacement``, (d,); None if there are none.
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
class PooledLayer:
    """Both modalities at one layer, over all processes of a group.

    Attributes:
        layer: 1..L.
        scale: text-centric scale, 1 without normalization; the moments are not multiplied by it yet.
        normalized: whether the scale is the text-centric one.
        vision_norms, text_norms: of all tokens of all processes, outliers included.
        own_text_norms: of this process's text tokens, in sample order, ``own_text_counts`` for each sample.
        group: the processes whose samples are taken together.
    """

    layer: int
    vision: PooledTokens
    text: PooledTokens
    scale: Tensor
    normalized: bool
    vision_norms: Tensor
    text_norms: Tensor
    own_text_norms: Tensor
    own_text_counts: Tensor
    group: Group

    @classmethod
    def of(cls, features: TokenFeatures, config: MirConfig, group: Group = ALONE) -> PooledLayer:
        """Normalization, outlier handling and moments of one layer. Collective.

        Args:
            features: of this process's samples; not modified.
        Raises:
            MirError: for NaN or infinite features, fewer than two tokens of a modality, or text of norm zero.
        """
        with group.agreed(f"layer {features.layer}"):
            own_vision_norms = _finite_norms(features.vision, "vision", features)
            own_text_norms = _finite_norms(features.text, "text", features)
        vision_norms, text_norms = group.all_gather(own_vision_norms), group.all_gather(own_text_norms)
        scale = scale_from_norms(text_norms)  # also refuses text of norm zero where it is not normalized
        vision = _pooled_tokens(features.vision, features.vision_counts, own_vision_norms, vision_norms, config, group)
        text = _pooled_tokens(features.text, features.text_counts, own_text_norms, text_norms, config, group)
        return cls(
            layer=features.layer,
            vision=vision,
            text=text,
            scale=scale if config.normalize else torch.ones_like(scale),
            normalized=config.normalize,
            vision_norms=vision_norms,
            text_norms=text_norms,
            own_text_norms=own_text_norms,
            own_text_counts=torch.tensor(features.text_counts, dtype=torch.long, device=features.text.device),
            group=group,
        )

    def transport(self) -> Transport:
        """The map between the two Gaussians, and the trace term, before scaling."""
        return transport(self.vision.moments, self.text.moments)

    def layer_distance(self, term: TraceTerm | None = None) -> LayerDistance:
        """The distance of the scaled moments, its parts, and what describes the two sets of tokens.

        Args:
            term: the trace term before scaling, if it is known already.
        """
        vision, text = self.vision.moments.scaled(self.scale), self.text.moments.scaled(self.scale)
        means = mean_term(vision, text).item()
        trace_vision, trace_text = vision.cov.trace().item(), text.cov.trace().item()
        term = term or trace_term(self.vision.moments, self.text.moments)
        trace = (term.value * self.scale**2).item()
        product = trace_product(vision, text).item()
        without_trace_term = means + trace_vision + trace_text
        distance = without_trace_term - 2 * trace
        return LayerDistance(
            layer=self.layer,
            distance=0.0 if distance <= ROUNDING * without_trace_term else distance,
            distance_published=without_trace_term - 2 * product,
            distance_published_upper=without_trace_term,
            mean_term=means,
            trace_vision=trace_vision,
            trace_text=trace_text,
            trace_term=trace,
            trace_product=product,
            trace_route=term.route,
            n_vision_tokens=len(self.vision_norms),
            n_text_tokens=len(self.text_norms),
            n_vision_outliers=self.vision.n_outliers,
            n_text_outliers=self.text.n_outliers,
            scale=float(self.scale),
            mean_norm_vision=self.vision_norms.mean().item(),
            mean_norm_text=self.text_norms.mean().item(),
            norm_ratio=(self.vision_norms.mean() / self.text_norms.mean()).item(),
            mean_cosine=_cosine(vision.mean, text.mean),
            effective_rank_vision=effective_rank(vision),
            effective_rank_text=effective_rank(text),
        )

    def influences(self, maps: Transport, distance: float) -> Tensor:
        """Derivative of the distance with respect to each sample's weight, (samples of all processes,), float64.

        They sum to zero: weighting all samples alike changes nothing. Collective.

        Args:
            maps: as ``transport`` returns them.
            distance: the layer's distance, scaled.
        """
        vision, text = self.vision, self.text
        gap = vision.moments.mean - text.moments.mean
        own = torch.stack(
            [
                per_sample(_token_influences(vision, gap, maps.to_text), vision.counts),
                vision.counts.double(),
                per_sample(_token_influences(text, -gap, maps.to_vision), text.counts),
                text.counts.double(),
                per_sample(self.own_text_norms, self.own_text_counts),
                self.own_text_counts.double(),
            ],
            dim=1,
        )
        of_vision, n_vision, of_text, n_text, lengths, n_lengths = self.group.all_gather(own).cpu().unbind(dim=1)
        influences = sample_influences(of_vision, n_vision) + sample_influences(of_text, n_text)
        influences *= self.scale.cpu() ** 2
        return influences + influences_through_scale(distance, lengths, n_lengths) if self.normalized else influences


def pooled_moments(
    features: Tensor, replaced: Tensor | None = None, replacement: Tensor | None = None, group: Group = ALONE
) -> Moments:
    """``metric.moments.moments`` of the tokens of all processes, some thousand rows at a time. Collective.

    Args:
        features: (tokens, d), this process's rows; not modified.
        replaced: bool (tokens,), rows that count as ``replacement`` instead.
        replacement: (d,).
        group: the processes whose rows are taken together.
    Raises:
        MirError: for fewer than two tokens in all processes together.
    """
    n, d = sum(group.all_gather_object(len(features))), features.shape[1]
    require_two(n)
    total = torch.zeros(d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        total += chunk.sum(dim=0)
    mean = group.all_reduce(total) / n
    products = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        _add_upper_products(products, chunk.sub_(mean))
    products = products.triu_() + products.triu(1).t()
    n_replaced = 0 if replaced is None else sum(group.all_gather_object(int(replaced.sum())))
    root = None
    if n - max(n_replaced, 1) < d:
        own = features if replaced is None else features[~replaced]
        distinct = group.all_gather(own.double() - mean)
        counts = torch.ones(len(distinct), device=features.device)
        if n_replaced and replacement is not None:
            distinct = torch.cat([distinct, (replacement.double() - mean)[None]])
            counts = torch.cat([counts, counts.new_tensor([n_replaced])])
        root = root_of_centred(distinct, counts) / (n - 1) ** 0.5
    return Moments(n, mean, group.all_reduce(products) / (n - 1), root)


def pooled_median(features: Tensor, group: Group = ALONE) -> Tensor:
    """``metric.normalize.coordinate_median`` over the tokens of all processes, (tokens, d) → (d,). Collective.

    Coordinates are taken in blocks made contiguous along the tokens: a whole transposed copy would double the memory of
    a layer. Processes share each block's coordinates, so every median is taken over all tokens and is exact.
    """
    medians = features.new_empty(features.shape[1])
    width = (64 if features.device.type == "cpu" else 1024) * group.size  # a GPU takes one thread block a coordinate
    for block, own in zip(features.split(width, dim=1), medians.split(width), strict=True):
        # First contiguous, then transposed: torch transposes whole matrices in tiles, and parts element by element.
        columns = group.all_to_all_columns(block).contiguous().t().clone(memory_format=torch.contiguous_format)
        own.copy_(group.all_gather(_lower_medians_in_place(columns)))
    return medians


def pooled_norms(features: Tensor) -> Tensor:
    """``metric.normalize.row_norms`` of this process's tokens, without a float64 copy of all of them."""
    norms = torch.empty(len(features), dtype=torch.float64, device=features.device)
    # Into one tensor: small results allocated between the copies would keep the heap from using their room again.
    for rows, own in zip(features.split(CHUNK_ROWS), norms.split(CHUNK_ROWS), strict=True):
        torch.linalg.vector_norm(rows.double(), dim=1, out=own)
    return norms


def per_sample(values: Tensor, counts: Tensor) -> Tensor:
    """Sum of the values of each sample's tokens: (tokens,) and (samples,) → (samples,), in the values' type or int64.

    >>> per_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 1])).tolist()
    [3.0, 0.0, 4.0]
    """
    values = values.long() if values.dtype == torch.bool else values
    sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add_(0, sample, values)


def token_chunks(
    features: Tensor,
    replaced: Tensor | None = None,
    replacement: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Tensor]:
    """Copies of the tokens, some thousand rows at a time (at least one chunk), with replaced rows replaced."""
    for start in range(0, max(len(features), 1), CHUNK_ROWS):
        chunk = features[start : start + CHUNK_ROWS].to(dtype, copy=True)
        if replaced is not None and replacement is not None:
            chunk[replaced[start : start + CHUNK_ROWS]] = replacement.to(dtype)
        yield chunk


def _pooled_tokens(
    features: Tensor, counts: Sequence[int], own_norms: Tensor, norms: Tensor, config: MirConfig, group: Group
) -> PooledTokens:
    rows_per_sample = torch.tensor(counts, dtype=torch.long, device=features.device)
    n_outliers = 0 if config.outliers == "none" else int(outlier_rows(norms, config.n_sigma).sum())
    if n_outliers == 0:
        return PooledTokens(features, rows_per_sample, None, None, 0, pooled_moments(features, group=group))
    outliers = outlier_rows(own_norms, config.n_sigma, among=norms)
    if config.outliers == "remove":
        kept = features[~outliers]
        rows_per_sample = per_sample(~outliers, rows_per_sample)
        return PooledTokens(kept, rows_per_sample, None, None, n_outliers, pooled_moments(kept, group=group))
    median = pooled_median(features, group)
    moments = pooled_moments(features, outliers, median, group)
    return PooledTokens(features, rows_per_sample, outliers, median, n_outliers, moments)


def _add_upper_products(products: Tensor, centred: Tensor) -> None:
    """Add centredᵀ centred to a (d, d) tensor, on and above its diagonal only: two thirds of the work."""
    width = -(-centred.shape[1] // 3)
    for start in range(0, centred.shape[1], width):
        products[start : start + width, start:].addmm_(centred[:, start : start + width].t(), centred[:, start:])


def _lower_medians_in_place(rows: Tensor) -> Tensor:
    """Lower median of each row, (rows, n) → (rows,); the order of the rows' values is lost."""
    if rows.device.type != "cpu":
        return lower_medians(rows)
    # NumPy selects with vector instructions, in a third of torch's time; half precision is exact in float32.
    values = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    middle = (values.shape[1] - 1) // 2
    values.partition(middle, axis=1)
    return torch.from_numpy(values[:, middle].copy()).to(rows.dtype)


def _token_influences(tokens: PooledTokens, gap: Tensor, factor: Tensor) -> Tensor:
    """``metric.influence.token_influences`` of this process's tokens, (tokens,); without the scale.

    In float32: a standard error needs no more digits, and these products are what the pass costs.

    Args:
        factor: (r, d) with factorᵀ factor = T.
    """
    mean, gap = tokens.moments.mean.float(), gap.float()
    squared_lengths: Callable[[Tensor], Tensor]
    if factor.device.type == "cpu":
        squared_lengths = partial(_squared_lengths_under, torch.linalg.qr(factor, mode="r").R.float())
    else:
        squared_lengths = partial(_squared_lengths, factor.float())
    parts = []
    for chunk in token_chunks(tokens.features, tokens.replaced, tokens.replacement, torch.float32):
        centred = chunk.sub_(mean)
        parts.append(token_influences(centred, squared_lengths(centred), gap, tokens.moments.n).double())
    return torch.cat(parts)


def _squared_lengths(factor: Tensor, rows: Tensor) -> Tensor:
    """‖R x‖² of each row x."""
    return squared_norms(rows @ factor.t())


def _squared_lengths_under(triangle: Tensor, rows: Tensor) -> Tensor:
    """The same under an upper triangular (or trapezoidal) R: block by block, without the zeros.

    It saves half of the products, which on a CPU outweighs the decomposition that makes R a triangle; not on a GPU.
    """
    width = -(-triangle.shape[1] // 4)
    lengths = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(triangle), width):
        carried = rows[:, start:] @ triangle[start : start + width, start:].t()
        lengths += squared_norms(carried)
    return lengths


def _finite_norms(features: Tensor, modality: str, layer: TokenFeatures) -> Tensor:
    norms = pooled_norms(features)
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
