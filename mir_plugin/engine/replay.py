"""The proof that a decoder's layers can be called one by one from the first layer's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mir_plugin.engine.streaming import LayerStream
from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, ModelAdapter

Path = Literal["breadth-first", "depth-first"]


@dataclass(frozen=True)
class ReplayCheck:
    """Which path a decoder takes, and why."""

    path: Path
    reason: str


class _Disproved(Exception):
    """Ends the forward pass of the proof; says what cannot be replayed."""


# Characters of the text that the proof runs on: a few of its tokens show as much as all, in less than half the time.
PROOF_TEXT = 200


@torch.no_grad()
def check_replay(adapter: ModelAdapter, sample: Sample) -> ReplayCheck:
    """Run one sample, its text cut short, through the whole model; after every layer, replay that layer and compare.

    Each layer runs twice while its weights are there, so that streamed weights are read once. Returns breadth-first
    only if all layers got the same keyword arguments, each layer's input was its predecessor's output, and the replayed
    states equal the recorded ones to the rounding of the dtype.

    Raises:
        MirError: from the adapter for a sample it cannot encode.
    """
    kinds = sorted(set(adapter.decoder.layer_kinds))
    if len(kinds) > 1:
        # Their masks may agree on this sample and differ on a longer one: nothing that one sample shows would prove it.
        return ReplayCheck("depth-first", f"layers are of several kinds: {', '.join(kinds)}")
    batch = adapter.encode([dataclasses.replace(sample, text=sample.text[:PROOF_TEXT].strip() or sample.text)])
    proof = _Proof(adapter, batch)
    try:
        with (
            adapter.decoder.outside(),
            LayerStream(adapter.decoder, adapter.device) as stream,
            stream.during_forward(),
            proof.watching(),
            adapter.bound_to(batch),
        ):
            adapter.forward(batch)
        proof.finish()
    except _Disproved as reason:
        return ReplayCheck("depth-first", str(reason))
    n_layers = len(adapter.decoder.layers)
    return ReplayCheck("breadth-first", f"replay of {n_layers} layers equals the plain forward pass")


def masks_only(batch: Batch) -> Batch:
    """The batch without its inputs: what ``bound_to`` gets during a replay."""
    return dataclasses.replace(batch, inputs={})


def split_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states, by position or by name, and all other arguments of a decoder layer by name."""
    if len(args) > 1:
        raise MirError("a decoder layer got positional arguments besides its hidden states; it cannot be replayed.")
    others = dict(kwargs)
    return (args[0] if args else others.pop("hidden_states")), others


def hidden_states_of(output: Any) -> Tensor:
    """Hidden states in what a decoder layer returns."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Name of an argument whose values differ, if there is one."""
    return next((name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name))), None)


class _Proof:
    """Hooks on a plain forward pass that replay each layer right after it has run."""

    def __init__(self, adapter: ModelAdapter, batch: Batch) -> None:
        self._adapter = adapter
        self._batch = masks_only(batch)
        self._n_calls = 0
        self._kwargs: dict[str, Any] = {}
        self._output: Tensor | None = None  # of the layer that ran last
        self._replayed: Tensor | None = None
        self._replaying = False
        self._reached_norm = False

    def watching(self) -> ExitStack:
        """The hooks, in place until the ``with`` block ends."""
        hooks = ExitStack()
        for k, layer in enumerate(self._adapter.decoder.layers):
            hooks.callback(layer.register_forward_pre_hook(partial(self._before, k), with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(partial(self._after, k)).remove)
        hooks.callback(self._adapter.decoder.final_norm.register_forward_pre_hook(self._before_norm).remove)
        return hooks

    def finish(self) -> None:
        """Raise _Disproved if the forward pass ended early."""
        n_layers = len(self._adapter.decoder.layers)
        if self._n_calls != n_layers:
            raise _Disproved(f"{self._n_calls} layer calls for {n_layers} layers")
        if not self._reached_norm:
            raise _Disproved("the final norm was not called")

    def _before(self, k: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._replaying:
            return
        if k != self._n_calls:
            raise _Disproved(f"layer {k + 1} is called at place {self._n_calls + 1}")
        self._n_calls += 1
        if len(args) > 1:
            raise _Disproved(f"layer {k + 1} gets positional arguments besides its hidden states")
        states, others = split_arguments(args, kwargs)
        if states.shape[:-1] != self._batch.vision_mask.shape:
            raise _Disproved(f"layer {k + 1} gets a tensor of shape {tuple(states.shape)}")
        if k == 0:
            self._replayed, self._kwargs = states, others
        elif name := first_difference(self._kwargs, others):
            raise _Disproved(f"argument {name} of layer {k + 1} differs from that of layer 1")
        elif not torch.equal(states, _known(self._output)):
            raise _Disproved(f"input of layer {k + 1} is not the output of layer {k}")

    def _after(self, k: int, layer: nn.Module, _: Any, output: Any) -> None:
        if self._replaying:
            return
        self._output = hidden_states_of(output)
        self._replaying = True
        try:
            with self._adapter.bound_to(self._batch):
                self._replayed = hidden_states_of(layer(_known(self._replayed), **self._kwargs))
        finally:
            self._replaying = False
        if not _equal_to_rounding(self._replayed, self._output):
            raise _Disproved(f"replayed output of layer {k + 1} differs from the recorded one")

    def _before_norm(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._output is None or not torch.equal(args[0], self._output):
            raise _Disproved("input of the final norm is not the output of the last layer")
        self._reached_norm = True


def _known(states: Tensor | None) -> Tensor:
    assert states is not None, "a layer ran before the first one"
    return states


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
