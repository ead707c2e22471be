"""Token features of one decoder layer after another, for all samples.

Outlier handling needs the median over *all* tokens of a layer, so statistics cannot be summed while samples stream by
without changing the metric. Hence breadth-first: layer k runs on all samples before layer k + 1, and only one layer's
features exist at a time. A decoder whose layers cannot be called one by one from the first layer's inputs runs
depth-first instead, its features spooled to disk.
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mir_plugin.engine.batches import BatchLimit, default_batch_size, halves, packed_by_length
from mir_plugin.engine.inputs import ReceivedInputs
from mir_plugin.engine.progress import progress
from mir_plugin.engine.replay import (
    ReplayCheck,
    check_replay,
    first_difference,
    hidden_states_of,
    masks_only,
    split_arguments,
)
from mir_plugin.engine.spool import Spool
from mir_plugin.engine.streaming import LayerStream
from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, ModelAdapter, TokenFeatures


def layer_features(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    *,
    batch_size: int | None = None,
    check: ReplayCheck | None = None,
    received: ReceivedInputs | None = None,
    n_buffers: int = 1,
) -> Iterator[TokenFeatures]:
    """Yield the features of layers 1..L in order; each is valid until the next is asked for.

    On an accelerator the layer's kernels may still be queued.

    Args:
        adapter: the loaded checkpoint.
        samples: at least one.
        batch_size: samples per forward pass; None takes ``default_batch_size``. The features do not depend on it
            beyond rounding: padding is masked. It is halved when the device runs out of memory.
        check: result of ``check_replay``; made on the first sample when absent.
        received: takes what reached the model.
        n_buffers: 2 keeps a layer's features valid until the next but one is asked for, in twice the memory.
    Raises:
        MirError: from the adapter for a sample it cannot encode.
        torch.OutOfMemoryError: if not even one sample fits.
    """
    if not samples:
        raise MirError("no samples to measure on.")
    check = check or check_replay(adapter, samples[0])
    batch_size = batch_size or default_batch_size(adapter, samples)
    received = received or ReceivedInputs()
    if check.path == "breadth-first":
        return _breadth_first(adapter, samples, batch_size, received, n_buffers)
    return _depth_first(adapter, samples, batch_size, received)


def features_in_step(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    check: ReplayCheck,
    received: ReceivedInputs,
    n_buffers: int,
    n_passes: int,
    idle: Sample,
) -> Iterator[TokenFeatures | None]:
    """``layer_features`` for a decoder whose weights are gathered from all processes: each gathers as often as another.

    Args:
        adapter: its decoder is ``collective``.
        samples: of this process; with none it yields None for each layer.
        batch_size, check, received, n_buffers: as for ``layer_features``; the same check in every process.
        n_passes: batches of the process that has most.
        idle: what runs through the model where layers are not replayed and this process has fewer batches.
    Raises:
        MirError: as ``layer_features``; and in every process where one of them fails.
        torch.OutOfMemoryError: with batches of any size: they are not halved, as the others would not know.
    """
    if check.path == "depth-first":
        n_idle = n_passes - -(-len(samples) // batch_size)
        yield from _depth_first(adapter, samples, batch_size, received, [idle] * n_idle)
        yield from [None] * (0 if samples else len(adapter.decoder.layers))
    elif samples:
        yield from _breadth_first(adapter, samples, batch_size, received, n_buffers)
    else:
        with adapter.decoder.outside():
            pass
        with LayerStream(adapter.decoder, adapter.device) as stream:
            for k in range(len(adapter.decoder.layers)):
                with stream.layer(k):
                    pass
                yield None


@contextmanager
def recorded_outputs(adapter: ModelAdapter, record: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand every layer's hidden state to ``record`` during a forward pass: L calls, the last after the final norm.

    Raises:
        MirError: on leaving, if what was taken for the final norm was not called after the last layer.
    """
    at_end = [False, False]  # whether the last layer has run, and the norm after it

    def after_layer(_: nn.Module, __: Any, output: Any) -> None:
        record(hidden_states_of(output))

    def after_last_layer(*_: Any) -> None:
        at_end[0] = True

    def after_norm(_: nn.Module, __: Any, output: Any) -> None:
        if at_end == [True, False]:
            at_end[1] = True
            record(hidden_states_of(output))

    *layers, last_layer = adapter.decoder.layers
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(after_layer).remove)
        hooks.callback(last_layer.register_forward_hook(after_last_layer).remove)
        hooks.callback(adapter.decoder.final_norm.register_forward_hook(after_norm).remove)
        yield
    if not at_end[1]:
        raise MirError(
            f"{type(adapter.decoder.final_norm).__name__} was taken for the norm after the last decoder layer, but the "
            "model does not call it there. This architecture needs an adapter of its own."
        )


class _Caught(Exception):
    """Ends a forward pass at the first decoder layer."""


class Places(NamedTuple):
    """Where vision, text and all other tokens stand in a flattened batch, each (tokens,).

    Numbers, not masks: a GPU would have to count masks again in every layer, and the CPU to wait for it.
    """

    vision: Tensor
    text: Tensor
    other: Tensor


@dataclass(frozen=True)
class CaughtBatch:
    """A batch as it reached the first decoder layer.

    Attributes:
        masks: the batch without its inputs.
        state: hidden states, (samples, tokens, d).
        kwargs: the layers' other arguments.
        autocast: restores the autocast mode of the forward pass.
    """

    masks: Batch
    state: Tensor
    kwargs: Mapping[str, Any]
    autocast: Callable[[], AbstractContextManager[None]]
    places: Places


@dataclass(frozen=True)
class PooledBatch:
    """A batch between two layers: where its vision and text tokens lie in the pool, and its other tokens.

    Attributes:
        indices: of its samples.
        masks, kwargs, autocast, places: as caught.
        vision_rows, text_rows: rows of the pool, (tokens,).
        others: hidden states of all other positions, (tokens, d); overwritten by every layer.
    """

    indices: Sequence[int]
    masks: Batch
    kwargs: Mapping[str, Any]
    autocast: Callable[[], AbstractContextManager[None]]
    places: Places
    vision_rows: Tensor
    text_rows: Tensor
    others: Tensor


class _Pool:
    """Hidden states of all samples between two layers, in sample order: what a layer's features are, kept once.

    With two buffers a layer reads one and writes the other, so that its predecessor's features outlive it.
    """

    def __init__(self, caught: list[CaughtBatch], batches: Sequence[Sequence[int]], n_buffers: int = 1) -> None:
        """Move the caught states into the pool; empties ``caught``, so that each is freed as soon as it is moved."""
        self.vision_counts = _counts_in_sample_order([one.masks.vision_mask for one in caught], batches)
        self.text_counts = _counts_in_sample_order([one.masks.text_mask for one in caught], batches)
        first = caught[0].state
        self.vision = first.new_empty(sum(self.vision_counts), first.shape[2])
        self.text = first.new_empty(sum(self.text_counts), first.shape[2])
        del first
        self._next = (self.vision, self.text)
        self.batches = []
        for indices in batches:
            one = caught.pop(0)
            self.batches.append(self.batch(one, indices))
            self.put(self.batches[-1], one.state)
            del one
        if n_buffers == 2:
            self._next = (torch.empty_like(self.vision), torch.empty_like(self.text))

    def take(self, batch: PooledBatch) -> Tensor:
        """The batch's hidden states as a layer expects them, (samples, tokens, d)."""
        shape = (*batch.masks.vision_mask.shape, self.vision.shape[1])
        state = self.vision.new_empty(shape[0] * shape[1], shape[2])
        state.index_copy_(0, batch.places.vision, self.vision.index_select(0, batch.vision_rows))
        state.index_copy_(0, batch.places.text, self.text.index_select(0, batch.text_rows))
        state.index_copy_(0, batch.places.other, batch.others)
        return state.view(shape)

    def put(self, batch: PooledBatch, state: Tensor) -> None:
        """Keep what a layer returned; ``take`` gives it after ``turn``."""
        # A layer's output lies on the layer's device where a model is spread over several GPUs.
        state = state.flatten(0, 1).to(self.vision.device)
        vision, text = self._next
        vision.index_copy_(0, batch.vision_rows, state.index_select(0, batch.places.vision))
        text.index_copy_(0, batch.text_rows, state.index_select(0, batch.places.text))
        batch.others.copy_(state.index_select(0, batch.places.other))

    def turn(self) -> None:
        """Go on with what the layer returned for all batches."""
        (self.vision, self.text), self._next = self._next, (self.vision, self.text)

    def batch(self, caught: CaughtBatch, indices: Sequence[int]) -> PooledBatch:
        """A caught batch of these samples, which belong to the pool; ``others`` are the caught ones."""
        device = self.vision.device
        return PooledBatch(
            indices,
            caught.masks,
            caught.kwargs,
            caught.autocast,
            caught.places,
            vision_rows=_rows_of(indices, self.vision_counts).to(device),
            text_rows=_rows_of(indices, self.text_counts).to(device),
            others=caught.state.flatten(0, 1).index_select(0, caught.places.other).to(device),
        )


class _BreadthFirst:
    """Runs one layer after another on all batches of a pool."""

    def __init__(
        self,
        adapter: ModelAdapter,
        samples: Sequence[Sample],
        batch_size: int,
        received: ReceivedInputs,
        n_buffers: int,
    ) -> None:
        self._adapter, self._samples, self._received = adapter, samples, received
        self._limit = BatchLimit(batch_size, collective=adapter.decoder.collective)
        caught, batches = self._caught(packed_by_length(samples, batch_size))
        self.pool = _Pool(caught, batches, n_buffers)

    def run(self, layer: nn.Module, *, is_last: bool) -> None:
        """Run a layer on the whole pool; the last is followed by the final norm."""
        work = functools.partial(self._layer_on, layer, is_last=is_last)
        done: list[PooledBatch] = []
        for batch in self.pool.batches:
            done += self._limit.run(batch, len(batch.indices), work, self._halves)
        self.pool.batches = done
        self.pool.turn()

    def _layer_on(self, layer: nn.Module, batch: PooledBatch, *, is_last: bool) -> PooledBatch:
        with self._adapter.bound_to(batch.masks), batch.autocast():
            state = hidden_states_of(layer(self.pool.take(batch), **batch.kwargs))
            state = self._adapter.decoder.final_norm(state) if is_last else state
        self.pool.put(batch, state)
        return batch

    def _halves(self, batch: PooledBatch) -> list[tuple[PooledBatch, int]]:
        """The batch in two: the layers' arguments are caught again, as nobody else knows how to part them."""
        state = self.pool.take(batch)
        parts = []
        for rows, size in halves(range(len(batch.indices))):
            indices = [batch.indices[row] for row in rows]
            caught = self._catch(indices)
            # Padding is on the right: a half may be shorter.
            part = state[rows[0] : rows[-1] + 1, : caught.state.shape[1]]
            parts.append((self.pool.batch(dataclasses.replace(caught, state=part), indices), size))
        return parts

    def _caught(self, batches: Sequence[Sequence[int]]) -> tuple[list[CaughtBatch], list[Sequence[int]]]:
        """All samples as they reach the first layer, and which are in which batch."""
        caught: list[CaughtBatch] = []
        kept: list[Sequence[int]] = []
        by_shape: dict[torch.Size, Mapping[str, Any]] = {}
        for indices in progress(batches, "images and text", "batch"):
            for part, batch in self._limit.run(indices, len(indices), lambda part: (part, self._catch(part)), halves):
                # Masks and rotary tables of batches of one length are mostly the same: one copy is kept.
                known = by_shape.setdefault(batch.masks.vision_mask.shape, batch.kwargs)
                shared = first_difference(known, batch.kwargs) is None
                caught.append(dataclasses.replace(batch, kwargs=known) if shared else batch)
                kept.append(part)
        return caught, kept

    def _catch(self, indices: Sequence[int]) -> CaughtBatch:
        encoded = self._adapter.encode([self._samples[index] for index in indices])
        self._received.add(encoded, indices)
        return _catch_first_layer_inputs(self._adapter, encoded, self._received)


def _breadth_first(
    adapter: ModelAdapter, samples: Sequence[Sample], batch_size: int, received: ReceivedInputs, n_buffers: int
) -> Iterator[TokenFeatures]:
    with torch.no_grad(), adapter.decoder.outside():
        running = _BreadthFirst(adapter, samples, batch_size, received, n_buffers)
    pool, n_layers = running.pool, len(adapter.decoder.layers)
    ids = tuple(sample.sample_id for sample in samples)
    with LayerStream(adapter.decoder, adapter.device) as stream:
        for k in progress(range(n_layers), "decoder layers", "layer"):
            with torch.no_grad(), stream.layer(k) as layer:
                running.run(layer, is_last=k + 1 == n_layers)
            yield TokenFeatures(k + 1, pool.vision, pool.text, pool.vision_counts, pool.text_counts, ids)


def _depth_first(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    batch_size: int,
    received: ReceivedInputs,
    idle: Sequence[Sample] = (),
) -> Iterator[TokenFeatures]:
    n_layers = len(adapter.decoder.layers)
    batches: list[Sequence[int]] = [
        range(len(samples))[start : start + batch_size] for start in range(0, len(samples), batch_size)
    ]
    limit = BatchLimit(batch_size, collective=adapter.decoder.collective)
    with Spool(n_layers) as spool:
        with (
            torch.no_grad(),
            adapter.decoder.outside(),
            LayerStream(adapter.decoder, adapter.device) as stream,
        ):

            def spooled(indices: Sequence[int]) -> None:
                batch = adapter.encode([samples[index] for index in indices])
                received.add(batch, indices)
                record = _SpoolRecorder(spool, batch, received)
                with (
                    spool.all_or_nothing(),
                    stream.during_forward(),
                    recorded_outputs(adapter, record),
                    adapter.bound_to(batch),
                ):
                    adapter.forward(batch)

            for indices in progress(batches, "forward passes", "batch"):
                list(limit.run(indices, len(indices), spooled, halves))
            for sample in idle:
                batch = adapter.encode([sample])
                with stream.during_forward(), adapter.bound_to(batch):
                    adapter.forward(batch)
        ids = tuple(sample.sample_id for sample in samples)
        for k in progress(range(n_layers) if samples else [], "decoder layers", "layer"):
            yield dataclasses.replace(spool.read(k + 1, adapter.device), sample_ids=ids)


def _catch_first_layer_inputs(adapter: ModelAdapter, batch: Batch, received: ReceivedInputs) -> CaughtBatch:
    caught: list[CaughtBatch] = []
    vision, text = batch.vision_mask, batch.text_mask
    places = Places(*(mask.flatten().nonzero().squeeze(1) for mask in (vision, text, ~(vision | text))))

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state, others = split_arguments(args, kwargs)
        received.computed(state)
        caught.append(CaughtBatch(masks_only(batch), _in_own_pages(state), others, _autocast_here(state), places))
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


def _autocast_here(state: Tensor) -> Callable[[], AbstractContextManager[None]]:
    """What switches autocast to what it is now: a model may switch it on inside its forward pass."""
    kind = state.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def _in_own_pages(state: Tensor) -> Tensor:
    """A copy in pages of its own, which go back to the system when it is freed.

    Freed pieces of the heap stay with the process: the states of all samples would be held beside the pool that they
    are moved to.
    """
    if state.device.type != "cpu":
        return state
    pages = mmap.mmap(-1, state.numel() * state.element_size())
    return torch.frombuffer(pages, dtype=state.dtype).view(state.shape).copy_(state)


def _counts_in_sample_order(masks: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> tuple[int, ...]:
    counts: dict[int, int] = {}
    for mask, indices in zip(masks, batches, strict=True):
        counts |= dict(zip(indices, mask.sum(dim=1).tolist(), strict=True))
    return tuple(count for _, count in sorted(counts.items()))


def _rows_of(indices: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Where the tokens of these samples stand among the tokens of all samples, (tokens,)."""
    return torch.cat([torch.arange(counts[index]) + sum(counts[:index]) for index in indices])


class _SpoolRecorder:
    """Writes the hidden states of one forward pass to a spool, layer after layer."""

    def __init__(self, spool: Spool, batch: Batch, received: ReceivedInputs) -> None:
        self._spool, self._batch, self._received, self._layer = spool, batch, received, 0

    def __call__(self, state: Tensor) -> None:
        self._layer += 1
        if self._layer == 1:
            self._received.computed(state)
        vision, text = self._batch.vision_mask, self._batch.text_mask
        if state.shape[:-1] != vision.shape:
            raise MirError(
                f"decoder layer {self._layer} returns a tensor of shape {tuple(state.shape)} for "
                f"{vision.shape[0]} x {vision.shape[1]} tokens: this model keeps several vectors for every token "
                "between its layers, and MIR is defined for one hidden state."
            )
        state = state.to(vision.device)  # a model may be spread over several GPUs
        counts = tuple(vision.sum(dim=1).tolist()), tuple(text.sum(dim=1).tolist())
        self._spool.add(TokenFeatures(self._layer, state[vision], state[text], *counts))
