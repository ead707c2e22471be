"""One layer's distance over the samples of all processes, without a copy of the features.

``mir_plugin.metric`` states the metric on whole tensors. ``PooledLayer`` gives the same values where a layer's tokens
fill much of the memory and are spread over processes; a property test compares the two. What it does differently:

* outliers are found and moments taken on the tokens as they are; the text-centric scale is applied to the moments;
* outliers to be replaced are marked, and replaced in copies of some thousand rows at a time;
* norms are gathered, covariances summed, and medians taken over the tokens of all processes;
* the number of tokens of each sample is kept, for the samples' influences;
* on an accelerator nothing is read back before the end: medians are taken whether or not there are outliers, and
  unusable features are noticed with the numbers. The decomposition waits for the device once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mir_plugin.engine.memory import CHUNK_ROWS
from mir_plugin.engine.threads import threads_for_decomposition, threads_for_pass
from mir_plugin.errors import MirError
from mir_plugin.metric.frechet import (
    ROUNDING,
    TraceTerm,
    Transport,
    frechet_distance,
    mean_term,
    trace_product,
    trace_term,
    transport,
    way_on,
)
from mir_plugin.metric.influence import influences_through_scale, sample_influences, squared_norms, token_influences
from mir_plugin.metric.moments import Moments, effective_rank, length, require_two, root_of_centred
from mir_plugin.metric.normalize import lower_medians, outlier_rows, row_norms, scale_from_norms, share_of_longest
from mir_plugin.metric.uncertainty import influence_of_deletion
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures

LARGE_EXPONENT = 40  # of two; squares of sums over d coordinates stay far below 2 ** 128, the end of float32


@dataclass(frozen=True)
class PooledTokens:
    """One modality at one layer after outlier handling; rows to be replaced are marked, not copied.

    Attributes:
        features: (tokens, d), this process's rows without removed ones.
        counts: rows per sample of ``features``, (samples,).
        replaced: bool (tokens,), rows that count as ``replacement``, (d,); None if there are none.
        n_outliers: in all processes, scalar.
        longest: part of the sum of squared lengths that the longest tokens of all processes have, scalar.
        moments: of all processes, not scaled.
    """

    features: Tensor
    counts: Tensor
    replaced: Tensor | None
    replacement: Tensor | None
    n_outliers: Tensor
    longest: Tensor
    moments: Moments


@dataclass(frozen=True)
class Decomposed:
    """What every process needs of a layer's decomposed covariances, which one of them made.

    Attributes:
        route: of the trace term.
        numbers: as ``PooledLayer.numbers``.
        sizes: powers of two near the vision and the text tokens' lengths, (2,), float64; empty without maps.
        to_text, to_vision: (r, d), float32, factors of the map from vision to text tokens and back; upper triangular
            on a CPU; without rows and columns where nobody asks for the samples' influences.
    """

    route: str
    numbers: Tensor
    sizes: Tensor
    to_text: Tensor
    to_vision: Tensor


@dataclass(frozen=True)
class PooledLayer:
    """Both modalities at one layer, over all processes of a group.

    Attributes:
        layer: 1..L.
        scale: text-centric scale, 1 without normalization; the moments are not multiplied by it yet.
        normalized: whether the scale is the text-centric one.
        vision_norms, text_norms: of all tokens of all processes, outliers included.
        own_vision_norms, own_text_norms: of this process's tokens, in sample order.
        own_text_counts: text tokens of each sample of this process.
        features: what the layer was made of.
        group: the processes whose samples are taken together.
    """

    layer: int
    vision: PooledTokens
    text: PooledTokens
    scale: Tensor
    normalized: bool
    vision_norms: Tensor
    text_norms: Tensor
    own_vision_norms: Tensor
    own_text_norms: Tensor
    own_text_counts: Tensor
    features: TokenFeatures
    group: Group

    @classmethod
    def of(cls, features: TokenFeatures, config: MirConfig, group: Group = ALONE) -> PooledLayer:
        """Normalization, outlier handling and moments of one layer. Collective.

        Args:
            features: of this process's samples; not modified.
        Raises:
            MirError: for fewer than two tokens of a modality; on a CPU also for NaN or infinite features or text of
                norm zero, which ``layer_distance`` refuses elsewhere.
        """
        with threads_for_pass(features.vision.numel() + features.text.numel()):
            return cls._of(features, config, group)

    @classmethod
    def _of(cls, features: TokenFeatures, config: MirConfig, group: Group) -> PooledLayer:
        own_vision_norms, own_text_norms = pooled_norms(features.vision), pooled_norms(features.text)
        with group.agreed(f"layer {features.layer}"):
            if reads_early(own_text_norms.device):
                _require_finite(own_vision_norms, own_text_norms, features)
        vision_norms, text_norms = group.all_gather(own_vision_norms), group.all_gather(own_text_norms)
        # The first also refuses text of norm zero, where it is not normalized too.
        scale = scale_from_norms(text_norms) if reads_early(text_norms.device) else 1 / text_norms.mean()
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
            own_vision_norms=own_vision_norms,
            own_text_norms=own_text_norms,
            own_text_counts=_counts_on(features.text.device, features.text_counts),
            features=features,
            group=group,
        )

    def transport(self) -> Transport:
        """The map between the two Gaussians, and the trace term, before scaling."""
        with threads_for_decomposition(len(self.vision.moments.cov)):
            return transport(self.vision.moments, self.text.moments)

    def decomposed(self, *, with_maps: bool) -> Decomposed:
        """The decomposition of the two covariances, with or without the maps that the samples' influences need."""
        maps = self.transport() if with_maps else None
        term = maps.trace_term if maps else self.trace_term()
        empty = torch.empty(0, 0, device=self.scale.device)
        factors = (self.sizes(), *_factors_for_tokens(maps)) if maps else (self.scale.new_empty(0), empty, empty)
        return Decomposed(term.route, self.numbers(term), *factors)

    def sizes(self) -> Tensor:
        """Powers of two near the vision and the text tokens' lengths, (2,), float64."""
        both = (self.vision.moments, self.text.moments)
        return torch.stack([_power_of_two(one.cov.trace() + one.mean.square().sum()) for one in both])

    def without_covariances(self) -> PooledLayer:
        """The same for a process that does not decompose them."""
        vision, text = (_without_covariance(tokens) for tokens in (self.vision, self.text))
        return replace(self, vision=vision, text=text)

    def trace_term(self) -> TraceTerm:
        """The trace term before scaling."""
        with threads_for_decomposition(len(self.vision.moments.cov)):
            return trace_term(self.vision.moments, self.text.moments)

    def layer_distance(self, term: TraceTerm | None = None) -> LayerDistance:
        """The distance of the scaled moments, its parts, and what describes the two sets of tokens.

        Args:
            term: the trace term before scaling, if it is known already.
        Raises:
            MirError: for NaN or infinite features, or text of norm zero.
        """
        term = term or self.trace_term()
        return self.distance_of(self.numbers(term).tolist(), term.route)

    def numbers(self, term: TraceTerm) -> Tensor:
        """All that ``distance_of`` needs, in one tensor on the layer's device: (20,), float64."""
        vision, text = self.vision.moments.scaled(self.scale), self.text.moments.scaled(self.scale)
        numbers = (
            sum((~norms.isfinite()).sum() for norms in (self.vision_norms, self.text_norms)),
            self.text_norms.mean(),
            mean_term(vision, text),
            vision.cov.trace(),
            text.cov.trace(),
            term.value.to(self.scale.device) * self.scale**2,
            trace_product(vision, text),
            self.vision.n_outliers,
            self.text.n_outliers,
            self.scale,
            self.vision_norms.mean(),
            self.text_norms.mean(),
            self.vision_norms.mean() / self.text_norms.mean(),
            _cosine(vision.mean, text.mean),
            effective_rank(vision),
            effective_rank(text),
            length(vision),
            length(text),
            self.vision.longest,
            self.text.longest,
        )
        return torch.stack([torch.as_tensor(number).to(self.scale.device, torch.float64) for number in numbers])

    def distance_of(self, numbers: Sequence[float], route: str) -> LayerDistance:
        """The layer's distance from the values of ``numbers``, on the host.

        Raises:
            MirError: for NaN or infinite features of this process, or text of norm zero.
        """
        n_broken, mean_text_norm, means, trace_vision, trace_text, trace, product, *rest = numbers
        if n_broken:
            _require_finite(self.own_vision_norms, self.own_text_norms, self.features)
        if mean_text_norm == 0:
            scale_from_norms(self.text_norms)
        n_vision_outliers, n_text_outliers, scale, norm_vision, norm_text, norm_ratio, cosine, *spreads = rest
        rank_vision, rank_text, length_vision, length_text, longest_vision, longest_text = spreads
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
            trace_route=route,
            n_vision_tokens=len(self.vision_norms),
            n_text_tokens=len(self.text_norms),
            n_vision_outliers=int(n_vision_outliers),
            n_text_outliers=int(n_text_outliers),
            scale=scale,
            mean_norm_vision=norm_vision,
            mean_norm_text=norm_text,
            norm_ratio=norm_ratio,
            mean_cosine=None if math.isnan(cosine) else cosine,
            effective_rank_vision=rank_vision,
            effective_rank_text=rank_text,
            length_vision=length_vision,
            length_text=length_text,
            longest_vision=None if math.isnan(longest_vision) else longest_vision,
            longest_text=None if math.isnan(longest_text) else longest_text,
        )

    def influences(self, maps: Transport, distance: float) -> Tensor:
        """Derivative of the distance with respect to each sample's weight, (samples of all processes,), float64.

        They sum to zero: weighting all samples alike changes nothing. Collective.

        Args:
            maps: as ``transport`` returns them.
            distance: the layer's distance, scaled.
        """
        sums = self.sample_sums(self.sizes(), *_factors_for_tokens(maps))
        return self.influences_of(sums.cpu(), distance, self.scale.cpu())

    def sample_sums(self, sizes: Tensor, to_text: Tensor, to_vision: Tensor) -> Tensor:
        """What each sample's tokens add to the influences, (samples of all processes, 6), on the device. Collective.

        Args:
            sizes, to_text, to_vision: as in ``Decomposed``.
        """
        with threads_for_pass(self.features.vision.numel() + self.features.text.numel()):
            return self._sample_sums(sizes, to_text, to_vision)

    def _sample_sums(self, sizes: Tensor, to_text: Tensor, to_vision: Tensor) -> Tensor:
        vision, text = self.vision, self.text
        gap = vision.moments.mean - text.moments.mean
        own = torch.stack(
            [
                per_sample(_token_influences(vision, gap, to_text, sizes[0]), vision.counts),
                vision.counts.double(),
                per_sample(_token_influences(text, -gap, to_vision, sizes[1]), text.counts),
                text.counts.double(),
                per_sample(self.own_text_norms, self.own_text_counts),
                self.own_text_counts.double(),
            ],
            dim=1,
        )
        return self.group.all_gather(own)

    def influences_of(self, sums: Tensor, distance: float, scale: Tensor | float) -> Tensor:
        """The samples' influences from the values of ``sample_sums``, on the host."""
        of_vision, n_vision, of_text, n_text, lengths, n_lengths = sums.unbind(dim=1)
        influences = sample_influences(of_vision, n_vision) + sample_influences(of_text, n_text)
        influences *= scale**2
        return influences + influences_through_scale(distance, lengths, n_lengths) if self.normalized else influences

    def group_influences(
        self, maps: Transport, distance: float, groups: Sequence[int], heavy: Sequence[int] = ()
    ) -> list[float]:
        """Influences of groups of samples: sums of ``influences``, and for heavy groups from leaving them out.

        Args:
            maps, distance: as for ``influences``.
            groups: of each sample of all processes, numbered from 0.
            heavy: groups to leave out; see ``metric.uncertainty.heavy_groups``.
        """
        without = {one: self.distance_without(torch.tensor(groups) == one) for one in heavy}
        return list(grouped_influences(self.influences(maps, distance), groups, distance, without))

    def distance_without(self, left_out: Tensor) -> float | None:
        """The distance of all samples but some; None where fewer than two tokens of a modality remain. Collective.

        Threshold and replacement of outliers stay those of all samples, as they do for the influences.

        Args:
            left_out: bool, (samples of all processes,).
        """
        rest = self.remaining(left_out)
        return None if rest is None else rest.distance()

    def remaining(self, left_out: Tensor) -> Remaining | None:
        """The layer without some samples, as for ``distance_without``. Collective.

        In a process that has no covariances only the call counts, not what it returns.
        """
        n_own = self.group.all_gather_object(len(self.own_text_counts))
        own = left_out.split(n_own)[self.group.rank]
        vision, text = (_moments_without(tokens, own, self.group) for tokens in (self.vision, self.text))
        if vision is None or text is None:
            return None
        scale = torch.ones((), dtype=torch.float64)
        if self.normalized:
            kept = per_sample(self.own_text_norms, self.own_text_counts)[~own.to(self.own_text_norms.device)].sum()
            n_kept = self.own_text_counts[~own.to(self.own_text_counts.device)].sum()
            length, n = self.group.all_reduce(torch.stack([kept.double(), n_kept.double()])).cpu().tolist()
            scale = torch.tensor(n / length, dtype=torch.float64) if length > 0 else scale
        return Remaining(vision, text, float(scale))


class Remaining(NamedTuple):
    """A layer without some of its samples: moments before scaling, and the scale."""

    vision: Moments
    text: Moments
    scale: float

    def distance(self) -> float:
        """The layer's distance."""
        return float(frechet_distance(self.vision, self.text).cpu() * self.scale**2)


def grouped_influences(
    of_samples: Tensor, groups: Sequence[int], distance: float, without: Mapping[int, float | None]
) -> tuple[float, ...]:
    """Influences of groups: sums over their samples, or what follows from the distances without them.

    Args:
        of_samples: (samples of all processes,), on the host.
        groups: of each of these samples, numbered from 0.
        without: group → the distance without it; None takes the sum.
    """
    n_groups = max(groups) + 1
    summed = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, torch.tensor(groups), of_samples.double())
    found: list[float] = summed.tolist()
    for one, rest in without.items():
        if rest is not None:
            found[one] = influence_of_deletion(distance, rest, n_groups)
    return tuple(found)


def _moments_without(tokens: PooledTokens, left_out: Tensor, group: Group) -> Moments | None:
    """Moments of the samples that are kept: those of all, less what the others add around the mean of all. Collective.

    Nothing but small differences of one mean is subtracted, so no digits are lost, and only the rows left out are read.
    """
    everything = tokens.moments
    mean = everything.mean
    d = len(mean)
    rows = torch.repeat_interleave(left_out.to(tokens.counts.device), tokens.counts)
    replaced = None if tokens.replaced is None else tokens.replaced[rows]
    total, products = torch.zeros_like(mean), mean.new_zeros(d, d)
    features = tokens.features[rows]
    for chunk in token_chunks(features, replaced, tokens.replacement):
        centred = chunk.sub_(mean)
        total += centred.sum(dim=0)
        products.addmm_(centred.t(), centred)
    n_kept = everything.n - sum(group.all_gather_object(len(features)))
    if n_kept < 2:
        return None
    shift, products = -group.all_reduce(total) / n_kept, group.all_reduce(products)
    if not len(everything.cov):
        return Moments(n_kept, mean + shift, everything.cov)
    kept = everything.cov * (everything.n - 1) - products - n_kept * torch.outer(shift, shift)
    return Moments(n_kept, mean + shift, kept / (n_kept - 1))


def reads_early(device: torch.device) -> bool:
    """Whether numbers may be looked at on the way: in host memory it is free, and covariances that go to the CPU to be
    decomposed are waited for anyway."""
    return device.type == "cpu" or way_on(device) != "polar"


def pooled_moments(
    features: Tensor,
    replaced: Tensor | None = None,
    replacement: Tensor | None = None,
    group: Group = ALONE,
    *,
    most_replaced: int | None = None,
) -> Moments:
    """``metric.moments.moments`` of the tokens of all processes, some thousand rows at a time. Collective.

    Args:
        features: (tokens, d), this process's rows; not modified.
        replaced: bool (tokens,), rows that count as ``replacement`` instead.
        replacement: (d,).
        group: the processes whose rows are taken together.
        most_replaced: an upper bound of the rows replaced in all processes; None counts them.
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
    if replaced is None:
        n_replaced = 0
    elif most_replaced is not None and n - most_replaced > d:
        n_replaced = most_replaced
    else:
        n_replaced = sum(group.all_gather_object(int(replaced.sum())))
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
    samples = torch.arange(len(counts), device=counts.device)
    sample = torch.repeat_interleave(samples, counts, output_size=len(values))
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
            torch.where(replaced[start : start + CHUNK_ROWS, None], replacement.to(dtype), chunk, out=chunk)
        yield chunk


def _pooled_tokens(
    features: Tensor, counts: Sequence[int], own_norms: Tensor, norms: Tensor, config: MirConfig, group: Group
) -> PooledTokens:
    rows_per_sample = _counts_on(features.device, counts)
    of_all = outlier_rows(norms, config.n_sigma)
    n_outliers = of_all.sum()
    if config.outliers == "none" or (reads_early(norms.device) and n_outliers == 0):
        moments, none = pooled_moments(features, group=group), torch.zeros_like(n_outliers)
        return PooledTokens(features, rows_per_sample, None, None, none, share_of_longest(norms), moments)
    outliers = outlier_rows(own_norms, config.n_sigma, among=norms)
    if config.outliers == "remove":
        kept = features[~outliers]
        longest = share_of_longest(norms[~of_all])
        rows_per_sample = per_sample(~outliers, rows_per_sample)
        return PooledTokens(kept, rows_per_sample, None, None, n_outliers, longest, pooled_moments(kept, group=group))
    median = pooled_median(features, group)
    longest = share_of_longest(torch.where(of_all, row_norms(median[None]), norms))
    most = None if reads_early(norms.device) else _most_outliers(len(norms), config.n_sigma)
    moments = pooled_moments(features, outliers, median, group, most_replaced=most)
    return PooledTokens(features, rows_per_sample, outliers, median, n_outliers, longest, moments)


def _counts_on(device: torch.device, counts: Sequence[int]) -> Tensor:
    """The counts on a device, (samples,); copied from pinned memory, or the host would wait for all queued work."""
    on_host = torch.tensor(counts, dtype=torch.long, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def _most_outliers(n: int, n_sigma: float) -> int:
    """How many of n norms can be n_sigma deviations from their median: Chebyshev, the median being within one of the
    mean."""
    return n if n_sigma <= 2 else int(n / (n_sigma - 1) ** 2)


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


def _without_covariance(tokens: PooledTokens) -> PooledTokens:
    one = tokens.moments
    return replace(tokens, moments=Moments(one.n, one.mean, one.cov.new_empty(0, 0)))


def _factors_for_tokens(maps: Transport) -> tuple[Tensor, Tensor]:
    """Factors of the map to the text and of that to the vision tokens as ``_token_influences`` takes them.

    On a CPU as triangles: that saves half of the products with the tokens, which outweighs the decomposition.
    """
    if maps.to_text.device.type != "cpu":
        return maps.to_text.float(), maps.to_vision.float()
    with threads_for_decomposition(len(maps.to_text)):
        to_text, to_vision = (torch.linalg.qr(factor, mode="r").R.float() for factor in (maps.to_text, maps.to_vision))
    return to_text, to_vision


def _token_influences(tokens: PooledTokens, gap: Tensor, factor: Tensor, size: Tensor) -> Tensor:
    """``metric.influence.token_influences`` of this process's tokens, (tokens,); without the scale.

    In float32: a standard error needs no more digits, and these products are what the pass costs. Where
    numbers are large their power of two is taken out, which changes no digit: float32 has no squares above 1e38.

    Args:
        factor: (r, d) with factorᵀ factor = T, as ``_factors_for_tokens`` gives it.
        size: the power of two, scalar.
    """
    mean, gap = (tokens.moments.mean / size).float(), (gap / size).float()
    on_cpu = factor.device.type == "cpu"
    squared_lengths = partial(_squared_lengths_under if on_cpu else _squared_lengths, factor)
    parts = []
    for chunk in token_chunks(tokens.features, tokens.replaced, tokens.replacement, torch.float32):
        centred = chunk.div_(size.float()).sub_(mean)
        parts.append(token_influences(centred, squared_lengths(centred), gap, tokens.moments.n).double())
    return torch.cat(parts) * size**2


def _power_of_two(square: Tensor) -> Tensor:
    """The power of two at or below the root of a squared length; 1 for lengths that float32 can square.

    >>> squares = torch.tensor([9.0, 9e40], dtype=torch.float64)
    >>> _power_of_two(squares).log2()
    tensor([ 0., 68.], dtype=torch.float64)
    """
    exponent = torch.frexp(square.double().sqrt()).exponent - 1
    return torch.where(exponent.abs() < LARGE_EXPONENT, 1.0, torch.exp2(exponent.double()))


def _squared_lengths(factor: Tensor, rows: Tensor) -> Tensor:
    """‖R x‖² of each row x."""
    return squared_norms(rows @ factor.t())


def _squared_lengths_under(triangle: Tensor, rows: Tensor) -> Tensor:
    """The same under an upper triangular (or trapezoidal) R: block by block, without the zeros.

    It saves half of the products.
    """
    width = -(-triangle.shape[1] // 4)
    lengths = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(triangle), width):
        carried = rows[:, start:] @ triangle[start : start + width, start:].t()
        lengths += squared_norms(carried)
    return lengths


def _require_finite(vision_norms: Tensor, text_norms: Tensor, layer: TokenFeatures) -> None:
    """Raise MirError for NaN or infinite tokens, which have such norms."""
    for modality, norms in (("vision", vision_norms), ("text", text_norms)):
        finite = torch.isfinite(norms)
        if finite.all():
            continue
        row = int((~finite).nonzero()[0])
        counts = torch.tensor(layer.vision_counts if modality == "vision" else layer.text_counts)
        sample = int(torch.searchsorted(counts.cumsum(0), torch.tensor(row), right=True))
        named = f"sample {layer.sample_ids[sample]}" if layer.sample_ids else f"sample number {sample}"
        raise MirError(
            f"{int((~finite).sum())} of {len(norms)} {modality} tokens at layer {layer.layer} are NaN or infinite, the "
            f"first in {named}. The weights or the image processor's settings may be damaged, or float16 overflowed: "
            "try --dtype bfloat16 or float32."
        )


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between two vectors, scalar; NaN where one is zero."""
    cosine: Tensor = one @ other / (one.norm() * other.norm())
    return cosine
