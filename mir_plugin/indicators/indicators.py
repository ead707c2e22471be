"""The indicators of a checkpoint that the paper compares MIR with, on the same samples and from the same features."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mir_plugin.engine.batches import default_batch_size
from mir_plugin.engine.features import layer_features
from mir_plugin.engine.precision import full_float32
from mir_plugin.engine.progress import progress
from mir_plugin.engine.replay import split_arguments
from mir_plugin.errors import MirError
from mir_plugin.indicators.in_context import ChoiceQuestion, in_context_accuracy
from mir_plugin.indicators.training_loss import training_loss
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.measurement.pooled_tokens import pooled_norms
from mir_plugin.metric.discrepancies import kernel_distances, mutual_information
from mir_plugin.metric.layer import mir
from mir_plugin.metric.normalize import scale_from_norms
from mir_plugin.model_adapters.prompts.generation import Generator
from mir_plugin.results import MirConfig
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import Batch, ModelAdapter, TokenFeatures

# Tokens of each modality per estimate, and estimates averaged, as is customary for KID: memory and time stay bounded
# where a layer has 57 600 vision tokens.
N_KERNEL_TOKENS, N_KERNEL_CHOICES = 1000, 4

DESCRIPTIONS: Mapping[str, str] = {
    "mir": "exact trace term, outliers replaced, text-centric normalization",
    "mir_published": "MIR with Tr(ΣvΣt) in place of the square root's trace, as the released script's default",
    "mir_published_upper": "MIR without trace term",
    "mir_no_normalization": "MIR without text-centric normalization",
    "mir_no_outliers": "MIR with outliers left in",
    "mir_remove_outliers": "MIR with outliers dropped",
    "mir_no_normalization_no_outliers": "MIR with neither",
    "mmd_input": "MMD², Gaussian kernel, of the tokens that enter the first decoder layer",
    "mmd_sum": "the same, summed over decoder layers",
    "kid_input": "KID, polynomial kernel, of the tokens that enter the first decoder layer",
    "kid_sum": "the same, summed over decoder layers",
    "mutual_information_input": "nats between a sample's mean vision and mean text token at the input; Gaussian",
    "mutual_information_sum": "the same, summed over decoder layers",
    "caption_loss": "nats per text token after the image",
    "perplexity": "exp of the caption loss",
    "training_loss": "mean of the last logged losses in trainer_state.json",
    "in_context_accuracy": "percentage of multiple-choice questions answered correctly after two examples",
}

HIGHER_IS_BETTER = frozenset({"mutual_information_input", "mutual_information_sum", "in_context_accuracy"})


@runtime_checkable
class PredictsText(Protocol):
    """An adapter that can tell how likely its text tokens are."""

    def text_token_losses(self, batch: Batch) -> Tensor:
        """−log p in nats of every token of ``batch.text_mask`` given all before it, (text tokens,), row after row."""
        ...


@dataclass(frozen=True)
class Indicators:
    """Values by name, and the reason for each that could not be computed; every name is in one of the two.

    ``DESCRIPTIONS`` says what the names mean.
    """

    values: Mapping[str, float]
    not_computed: Mapping[str, str]

    def merged(self, other: Indicators) -> Indicators:
        """Both together; names are distinct."""
        return Indicators({**self.values, **other.values}, {**self.not_computed, **other.not_computed})


def indicator(names: Sequence[str], compute: Callable[[], Sequence[float]]) -> Indicators:
    """The values that ``compute`` returns for the names, or the user error it raises as the reason for having none."""
    try:
        return Indicators(dict(zip(names, compute(), strict=True)), {})
    except MirError as reason:
        return Indicators({}, dict.fromkeys(names, str(reason)))


@full_float32()
def model_indicators(
    adapter: ModelAdapter, sample_set: SampleSet, *, batch_size: int | None = None, seed: int = 0
) -> Indicators:
    """All indicators that need the loaded checkpoint and the samples alone.

    Two passes: a plain one for the caption loss and the decoder's input, and one over the decoder's layers, in which
    every layer's features serve all distances.

    Args:
        batch_size: samples per forward pass; None takes ``engine.default_batch_size``.
        seed: of the choice of tokens for MMD and KID; the same tokens in every layer.
    Raises:
        MirError: for samples that cannot be used, features that are not finite, or weights that are streamed.
    """
    if adapter.decoder.streamed is not None:
        raise MirError("indicators need all weights in memory; load the checkpoint without --device-memory.")
    samples, size = sample_set.samples, batch_size or default_batch_size(adapter, sample_set.samples)
    at_input, losses = _plain_pass(adapter, samples, size)
    chosen = _token_choices(len(at_input.vision), len(at_input.text), seed)
    series, distances = _Series(), defaultdict[str, list[float]](list)
    _add_token_distances(series, at_input, chosen)
    for features in layer_features(adapter, samples, batch_size=size):
        _add_token_distances(series, features, chosen)
        for name, distance in _mir_distances(features).items():
            distances[name].append(distance)

    found = indicator(["caption_loss", "perplexity"], lambda: _caption_loss(losses, adapter.family))
    for name in ("mmd", "kid", "mutual_information"):
        found = found.merged(indicator([f"{name}_input", f"{name}_sum"], partial(_input_and_sum, series, name)))
    for name, of_layers in distances.items():
        found = found.merged(indicator([name], partial(_mir_of, of_layers)))
    return found


def checkpoint_indicators(
    adapter: ModelAdapter,
    folder: Path,
    sample_set: SampleSet,
    questions: Sequence[ChoiceQuestion],
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> Indicators:
    """All indicators of one loaded checkpoint; the in-context accuracy only where there are questions.

    Args:
        adapter: the checkpoint, loaded.
        folder: where it was loaded from; its trainer_state.json has the training loss.
        batch_size: samples per forward pass; None takes ``engine.default_batch_size``.
        seed: of the choice of tokens and of in-context examples.
    Raises:
        MirError: if the samples cannot be measured.
    """

    def accuracy() -> tuple[float]:
        if not questions:
            raise MirError("no questions were requested")
        if not isinstance(adapter, Generator):
            raise MirError(f"the adapter {adapter.family} does not generate answers")
        return (in_context_accuracy(adapter, questions, seed=seed),)

    found = model_indicators(adapter, sample_set, batch_size=batch_size, seed=seed)
    found = found.merged(indicator(["training_loss"], lambda: (training_loss(folder),)))
    return found.merged(indicator(["in_context_accuracy"], accuracy))


class _Series:
    """Values of one layer after another, by name; a name that fails in one layer keeps its reason and no values."""

    def __init__(self) -> None:
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self.reasons: dict[str, str] = {}

    def add(self, names: Sequence[str], compute: Callable[[], Sequence[float]]) -> None:
        of_layer = indicator(names, compute)
        self.reasons |= of_layer.not_computed
        for name, value in of_layer.values.items():
            self.values[name].append(value)

    def of(self, name: str) -> list[float]:
        if name in self.reasons:
            raise MirError(self.reasons[name])
        return self.values[name]


class _TokenChoice(NamedTuple):
    vision: Tensor
    text: Tensor


def _add_token_distances(series: _Series, features: TokenFeatures, chosen: Sequence[_TokenChoice]) -> None:
    series.add(["mmd", "kid"], lambda: _mean_kernel_distances(features, chosen))
    means = (sample_means(features.vision, features.vision_counts), sample_means(features.text, features.text_counts))
    series.add(["mutual_information"], lambda: [mutual_information(*means)])


def _mir_distances(features: TokenFeatures) -> dict[str, float]:
    """The layer's distance in each of MIR's variants; outliers are handled once where there are none.

    Every part of the exact distance is a squared length, so dividing by the squared scale takes the normalization back.
    """
    replaced = removed = left_in = PooledLayer.of(features, MirConfig()).layer_distance()
    if replaced.n_vision_outliers or replaced.n_text_outliers:
        removed = PooledLayer.of(features, MirConfig(outliers="remove")).layer_distance()
        left_in = PooledLayer.of(features, MirConfig(outliers="none")).layer_distance()
    return {
        "mir": replaced.distance,
        "mir_published": replaced.distance_published,
        "mir_published_upper": replaced.distance_published_upper,
        "mir_no_normalization": replaced.distance / replaced.scale**2,
        "mir_no_outliers": left_in.distance,
        "mir_remove_outliers": removed.distance,
        "mir_no_normalization_no_outliers": left_in.distance / left_in.scale**2,
    }


def _mean_kernel_distances(features: TokenFeatures, chosen: Sequence[_TokenChoice]) -> list[float]:
    scale = scale_from_norms(pooled_norms(features.text))
    found = [
        kernel_distances(features.vision[rows.vision].double() * scale, features.text[rows.text].double() * scale)
        for rows in chosen
    ]
    return [math.fsum(values) / len(found) for values in zip(*found, strict=True)]


def _token_choices(n_vision: int, n_text: int, seed: int) -> list[_TokenChoice]:
    """Seeded choices of rows; a single one, of all rows, where there are few enough."""
    generator = torch.Generator().manual_seed(seed)
    n_choices = 1 if max(n_vision, n_text) <= N_KERNEL_TOKENS else N_KERNEL_CHOICES
    return [
        _TokenChoice(*(torch.randperm(n, generator=generator)[:N_KERNEL_TOKENS] for n in (n_vision, n_text)))
        for _ in range(n_choices)
    ]


def sample_means(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean of each sample's tokens in float64, (tokens, d) → (samples, d).

    >>> sample_means(torch.tensor([[1.0], [3.0], [5.0]]), [2, 1]).tolist()
    [[2.0], [5.0]]
    """
    return torch.stack([rows.double().mean(dim=0) for rows in features.split(list(counts))])


@torch.no_grad()
def _plain_pass(
    adapter: ModelAdapter, samples: Sequence[Sample], batch_size: int
) -> tuple[TokenFeatures, list[Tensor]]:
    """The input of the first decoder layer, as layer 0, and the losses of the text tokens if the adapter has them."""
    inputs: list[Tensor] = []
    losses: list[Tensor] = []
    vision: list[Tensor] = []
    text: list[Tensor] = []
    vision_counts: list[int] = []
    text_counts: list[int] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(split_arguments(args, kwargs)[0])

    hook = adapter.decoder.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for start in progress(range(0, len(samples), batch_size), "caption loss", "batch"):
            batch = adapter.encode(samples[start : start + batch_size])
            if isinstance(adapter, PredictsText):
                losses.append(adapter.text_token_losses(batch))
            else:
                adapter.forward(batch)
            state = inputs.pop()
            vision.append(state[batch.vision_mask])
            text.append(state[batch.text_mask])
            vision_counts += batch.vision_mask.sum(dim=1).tolist()
            text_counts += batch.text_mask.sum(dim=1).tolist()
    finally:
        hook.remove()
    return TokenFeatures(0, torch.cat(vision), torch.cat(text), tuple(vision_counts), tuple(text_counts)), losses


def _caption_loss(losses: Sequence[Tensor], family: str) -> tuple[float, float]:
    if not losses:
        raise MirError(f"the adapter {family} does not provide the losses of its text tokens.")
    loss = float(torch.cat(list(losses)).double().mean())
    return loss, math.exp(loss)


def _input_and_sum(series: _Series, name: str) -> tuple[float, float]:
    at_input, *of_layers = series.of(name)
    return at_input, math.fsum(of_layers)


def _mir_of(distances: Sequence[float]) -> tuple[float]:
    return (mir(distances),)
