"""One layer's distance over the samples of all processes, without a copy of the features.

``mir_plugin.metric`` states the metric on whole tensors. ``PooledLayer`` gives the same values where a layer's tokens
fill much of the memory and are spread over processes; a property test compares the two. What it does differently:

* outliers are found and moments taken on the tokens as they are (``pooled_tokens``); the text-centric scale is applied
  to the moments;
* norms are gathered, covariances summed, and medians taken over the tokens of all processes;
* the number of tokens of each sample is kept, for the samples' influences;
* on an accelerator nothing is read back before the end: medians are taken whether or not there are outliers, and
  unusable features are noticed with the numbers. The decomposition waits for the device once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mir_plugin.engine.threads import threads_for_decomposition, threads_for_pass
from mir_plugin.errors import MirError
from mir_plugin.measurement.pooled_tokens import (
    PooledTokens,
    counts_on,
    per_sample,
    pooled_norms,
    pooled_tokens,
    reads_early,
    token_chunks,
)
from mir_plugin.metric.frechet import (
    ROUNDING,
    TraceTerm,
    Transport,
    frechet_distance,
    mean_term,
    trace_product,
    trace_term,
    transport,
)
from mir_plugin.metric.influence import influences_through_scale, sample_influences, squared_norms, token_influences
from mir_plugin.metric.moments import Moments, effective_rank, length
from mir_plugin.metric.normalize import scale_from_norms
from mir_plugin.metric.uncertainty import influence_of_deletion
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures

NUMBERS = (
    "n_unusable", "mean_term", "trace_vision", "trace_text", "trace_term", "trace_product", "n_vision_outliers",
    "n_text_outliers", "scale", "mean_norm_vision", "mean_norm_text", "norm_ratio", "mean_cosine",
    "effective_rank_vision", "effective_rank_text", "length_vision", "length_text", "longest_vision", "longest_text",
)  # fmt: skip
"""What a layer's distance follows from, in the order of ``PooledLayer.numbers``: tokens that are NaN or infinite, and
fields of ``LayerDistance``."""
LARGE_EXPONENT = 40  # of two; squares of sums over d coordinates stay far below 2 ** 128, the end of float32


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
        vision = pooled_tokens(features.vision, features.vision_counts, own_vision_norms, vision_norms, config, group)
        text = pooled_tokens(features.text, features.text_counts, own_text_norms, text_norms, config, group)
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
            own_text_counts=counts_on(features.text.device, features.text_counts),
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
        return replace(self, vision=self.vision.without_covariance(), text=self.text.without_covariance())

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
        """All that ``distance_of`` needs, in one tensor on the layer's device: (len(NUMBERS),), float64."""
        vision, text = self.vision.moments.scaled(self.scale), self.text.moments.scaled(self.scale)
        known: dict[str, Tensor | float] = {
            "n_unusable": sum((~norms.isfinite()).sum() for norms in (self.vision_norms, self.text_norms)),
            "mean_term": mean_term(vision, text),
            "trace_vision": vision.cov.trace(),
            "trace_text": text.cov.trace(),
            "trace_term": term.value.to(self.scale.device) * self.scale**2,
            "trace_product": trace_product(vision, text),
            "n_vision_outliers": self.vision.n_outliers,
            "n_text_outliers": self.text.n_outliers,
            "scale": self.scale,
            "mean_norm_vision": self.vision_norms.mean(),
            "mean_norm_text": self.text_norms.mean(),
            "norm_ratio": self.vision_norms.mean() / self.text_norms.mean(),
            "mean_cosine": _cosine(vision.mean, text.mean),
            "effective_rank_vision": effective_rank(vision),
            "effective_rank_text": effective_rank(text),
            "length_vision": length(vision),
            "length_text": length(text),
            "longest_vision": self.vision.longest,
            "longest_text": self.text.longest,
        }
        return torch.stack([torch.as_tensor(known[name]).to(self.scale.device, torch.float64) for name in NUMBERS])

    def distance_of(self, numbers: Sequence[float], route: str) -> LayerDistance:
        """The layer's distance from the values of ``numbers``, on the host.

        Raises:
            MirError: for NaN or infinite features of this process, or text of norm zero.
        """
        known: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
        if known.pop("n_unusable"):
            _require_finite(self.own_vision_norms, self.own_text_norms, self.features)
        if known["mean_norm_text"] == 0:
            scale_from_norms(self.text_norms)
        for name in ("n_vision_outliers", "n_text_outliers"):
            known[name] = int(known[name])
        for name in ("mean_cosine", "longest_vision", "longest_text"):
            known[name] = None if math.isnan(known[name]) else known[name]
        without_trace_term = known["mean_term"] + known["trace_vision"] + known["trace_text"]
        distance = without_trace_term - 2 * known["trace_term"]
        return LayerDistance(
            layer=self.layer,
            distance=0.0 if distance <= ROUNDING * without_trace_term else distance,
            distance_published=without_trace_term - 2 * known["trace_product"],
            distance_published_upper=without_trace_term,
            trace_route=route,
            n_vision_tokens=len(self.vision_norms),
            n_text_tokens=len(self.text_norms),
            **known,
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
        vision, text = (tokens.moments_without(own, self.group) for tokens in (self.vision, self.text))
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
