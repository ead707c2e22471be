"""Token features of one decoder layer after another, for all samples.

Outlier handling needs the median over *all* tokens of a layer, so statistics cannot be summed while samples stream by
without changing the metric. Hence breadth-first: layer k runs on all samples before layer k + 1, and only one layer's
features exist at a time. A decoder whose layers cannot be called one by one from the first layer's inputs runs
depth-first instead, its features spooled to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mir_plugin.errors import MirError
from mir_plugin.samples import Sample
from mir_plugin.spool import Spool
from mir_plugin.types import Batch, ModelAdapter, TokenFeatures

Path = Literal["breadth-first", "depth-first"]


@dataclass(frozen=True)
class ReplayCheck:
    """Which path a decoder takes, and why."""

    path: Path
    reason: str


@dataclass
class _Running:
    """A batch on its way through the layers."""

    batch: Batch
    hidden_states: Tensor
    kwargs: Mapping[str, Any]


class _Caught(Exception):
    """Ends a forward pass at the first decoder layer."""


def layer_features(
    adapter: ModelAdapter, samples: Sequence[Sample], *, batch_size: int = 1, check: ReplayCheck | None = None
) -> Iterator[TokenFeatures]:
    """Yield the features of layers 1..L in order; each is valid until the next is asked for.

    Args:
        adapter: the loaded checkpoint.
        samples: at least one; every batch is a run of ``batch_size`` neighbours.
        check: result of ``check_replay``; made on the first sample when absent.
    Raises:
        MirError: from the adapter for a sample it cannot encode, or when a modality has no token.
    """
    if not samples:
        raise MirError("no samples to measure on.")
    check = check or check_replay(adapter, samples[0])
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    features = _breadth_first if check.path == "breadth-first" else _depth_first
    return features(adapter, batches)


@torch.no_grad()
def check_replay(adapter: ModelAdapter, sample: Sample) -> ReplayCheck:
    """Run one sample through the whole model and layer by layer, and compare every layer's output.

    Returns breadth-first only if all layers got the same keyword arguments, each layer's input was its predecessor's
    output, and the replayed states equal the recorded ones to the rounding of the dtype.
    """
    kinds = sorted(set(adapter.decoder.layer_kinds))
    if len(kinds) > 1:
        # Their masks may agree on this sample and differ on a longer one: nothing that one sample shows would prove it.
        return ReplayCheck("depth-first", f"layers are of several kinds: {', '.join(kinds)}")
    batch = adapter.encode([sample])
    inputs: list[Tensor] = []
    kwargs: list[Mapping[str, Any]] = []
    outputs: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], layer_kwargs: dict[str, Any]) -> None:
        hidden_states, others = _split_arguments(args, layer_kwargs)
        inputs.append(hidden_states)
        kwargs.append(others)

    with ExitStack() as hooks:
        for layer in adapter.decoder.layers:
            hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.enter_context(recorded_outputs(adapter, outputs.append))
        with adapter.bound_to(batch):
            adapter.forward(batch)

    n_layers = len(adapter.decoder.layers)
    if len(inputs) != n_layers or len(outputs) != n_layers:
        return ReplayCheck("depth-first", f"{len(inputs)} layer calls for {n_layers} layers")
    for k in range(1, n_layers):
        if difference := _first_difference(kwargs[0], kwargs[k]):
            return ReplayCheck("depth-first", f"argument {difference} of layer {k + 1} differs from that of layer 1")
        if not torch.equal(inputs[k], outputs[k - 1]):
            return ReplayCheck("depth-first", f"input of layer {k + 1} is not the output of layer {k}")
    running = _Running(batch, inputs[0], kwargs[0])
    for k in range(n_layers):
        state = _advance(adapter, k, running)
        if not _equal_to_rounding(state, outputs[k]):
            return ReplayCheck("depth-first", f"replayed output of layer {k + 1} differs from the recorded one")
    return ReplayCheck("breadth-first", f"replay of {n_layers} layers equals the plain forward pass")


@contextmanager
def recorded_outputs(adapter: ModelAdapter, record: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand every layer's hidden state to ``record`` during a forward pass: L calls, the last after the final norm."""

    def after_layer(_: nn.Module, __: Any, output: Any) -> None:
        record(_hidden_states_of(output))

    with ExitStack() as hooks:
        for layer in adapter.decoder.layers[:-1]:
            hooks.callback(layer.register_forward_hook(after_layer).remove)
        hooks.callback(adapter.decoder.final_norm.register_forward_hook(after_layer).remove)
        yield


def _breadth_first(adapter: ModelAdapter, batches: Sequence[Sequence[Sample]]) -> Iterator[TokenFeatures]:
    with torch.no_grad():
        running = [
            _catch_first_layer_inputs(adapter, adapter.encode(batch))
            for batch in tqdm(batches, desc="images and text", unit="batch", disable=None)
        ]
    for k in tqdm(range(len(adapter.decoder.layers)), desc="decoder layers", unit="layer", disable=None):
        with torch.no_grad():
            states = [_advance(adapter, k, one) for one in running]
        yield _pooled(k + 1, ((one.batch, state) for one, state in zip(running, states, strict=True)))


def _depth_first(adapter: ModelAdapter, batches: Sequence[Sequence[Sample]]) -> Iterator[TokenFeatures]:
    n_layers = len(adapter.decoder.layers)
    with Spool(n_layers) as spool:
        for samples in tqdm(batches, desc="forward passes", unit="batch", disable=None):
            batch = adapter.encode(samples)
            states: list[Tensor] = []
            with torch.no_grad(), recorded_outputs(adapter, states.append), adapter.bound_to(batch):
                adapter.forward(batch)
            for k, state in enumerate(states):
                spool.add(_pooled(k + 1, [(batch, state)]))
        for k in tqdm(range(n_layers), desc="decoder layers", unit="layer", disable=None):
            yield spool.read(k + 1, adapter.device)


def _catch_first_layer_inputs(adapter: ModelAdapter, batch: Batch) -> _Running:
    caught: list[_Running] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(_Running(batch, *_split_arguments(args, kwargs)))
        raise _Caught

    handle = adapter.decoder.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with adapter.bound_to(batch):
            adapter.forward(batch)
    except _Caught:
        return caught[0]
    finally:
        handle.remove()
    raise MirError("the model's forward pass never reached its first decoder layer; it cannot be measured.")


def _advance(adapter: ModelAdapter, k: int, running: _Running) -> Tensor:
    """Run layer k (0-based) on a batch in place; return its hidden state, after the final norm for the last layer."""
    with adapter.bound_to(running.batch):
        output = adapter.decoder.layers[k](running.hidden_states, **running.kwargs)
    running.hidden_states = _hidden_states_of(output)
    if k + 1 < len(adapter.decoder.layers):
        return running.hidden_states
    normed: Tensor = adapter.decoder.final_norm(running.hidden_states)
    return normed


def _pooled(layer: int, states: Any) -> TokenFeatures:
    vision, text = [], []
    vision_counts: list[int] = []
    text_counts: list[int] = []
    for batch, state in states:
        vision.append(state[batch.vision_mask])
        text.append(state[batch.text_mask])
        vision_counts += batch.vision_mask.sum(dim=1).tolist()
        text_counts += batch.text_mask.sum(dim=1).tolist()
    return TokenFeatures(layer, torch.cat(vision), torch.cat(text), tuple(vision_counts), tuple(text_counts))


def _split_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
    """Hidden states, by position or by name, and all other arguments by name."""
    if args:
        if len(args) > 1:
            raise MirError("a decoder layer got positional arguments besides its hidden states; it cannot be replayed.")
        return args[0], dict(kwargs)
    others = dict(kwargs)
    return others.pop("hidden_states"), others


def _hidden_states_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    for name in one.keys() | other.keys():
        if not _same(one.get(name), other.get(name)):
            return name
    return None


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _equal_to_rounding(one: Tensor, other: Tensor) -> bool:
    # The same kernels on the same values: a few units in the last place at most, relative to the largest entry.
    tolerance = 8 * torch.finfo(other.dtype).eps * other.abs().max()
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance)
