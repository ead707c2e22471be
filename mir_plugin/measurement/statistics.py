"""Layers' statistics: beside the next layer's forward passes where a GPU has room, and dealt out to the processes.

Every process needs all layers' decomposed covariances, for its samples' influences. Layers are taken together, as many
as there are processes, and each process decomposes one of them while the others do theirs; then they exchange what they
found. A process keeps its tokens of these layers meanwhile: with its share of the samples, those are as many as one
process alone has of one layer.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from mir_plugin.engine.overlap import OnHost, SecondStream
from mir_plugin.measurement.pooled import Decomposed, PooledLayer, grouped_influences
from mir_plugin.measurement.resume import FinishedLayer
from mir_plugin.processes import Group
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures


class Statistics:
    """Takes layers' features and gives finished layers, at once or, beside the next layer's forward passes, later.

    Where they are later, layer k is begun when layer k + 1 is queued, and read when layer k + 1 is begun: the device
    always has work, and the host waits for it once a layer, where the decomposition has to know whether a covariance is
    singular. Layers that are taken together are begun with the last of them.

    Attributes:
        seconds: that the host spent here; where work overlaps, part of them are forward passes.
    """

    def __init__(
        self,
        device: torch.device,
        config: MirConfig,
        groups: Sequence[int],
        group: Group,
        *,
        n_behind: int,
        n_together: int = 1,
    ) -> None:
        """Begin without layers.

        Args:
            groups: of each sample, for the influences; empty without.
            n_behind: layers that are queued before one is begun, 0 or 1.
            n_together: layers that processes deal out among themselves, at most as many as there are processes.
        """
        self._device, self._n_behind, self._n_together = device, n_behind, n_together
        self._arguments = (config, groups, group)
        self._stream = SecondStream(device)
        self._queued: collections.deque[tuple[TokenFeatures, Any]] = collections.deque()
        self._begun: collections.deque[_BegunLayers] = collections.deque()
        self._heavy: Sequence[int] = ()
        self.seconds = 0.0

    def add(self, features: TokenFeatures, heavy: Sequence[int]) -> None:
        """Take the next layer, and the groups of samples that are left out for standard errors, the same each time."""
        self._heavy = heavy
        if (len(self._queued) + 1) % self._n_together:  # others follow before it is begun
            features = replace(features, vision=features.vision.clone(), text=features.text.clone())
        self._queued.append((features, self._stream.mark()))

    def finished(self) -> Iterator[FinishedLayer]:
        """Begin what has waited long enough, and give what is finished. Collective."""
        return self._finished(self._n_together + self._n_behind, self._n_behind)

    def rest(self) -> Iterator[FinishedLayer]:
        """Give all that is left. Collective."""
        return self._finished(1, 0)

    def _finished(self, n_queued: int, n_behind: int) -> Iterator[FinishedLayer]:
        if n_behind == 0:
            _wait_for(self._device)
        started = time.perf_counter()
        while len(self._queued) >= n_queued:
            layers = [self._queued.popleft() for _ in range(min(self._n_together, len(self._queued)))]
            with self._stream.after(layers[-1][1]):
                self._begun.append(_BegunLayers([features for features, _ in layers], self._heavy, *self._arguments))
            self._stream.join()
        ready = [one for _ in range(len(self._begun) - n_behind) for one in self._begun.popleft().finished()]
        self.seconds += time.perf_counter() - started
        yield from ready


class _BegunLayers:
    """Layers whose statistics were given to the device: process k decomposes the covariances of the k-th."""

    def __init__(
        self,
        features: Sequence[TokenFeatures],
        heavy: Sequence[int],
        config: MirConfig,
        groups: Sequence[int],
        group: Group,
    ) -> None:
        self._groups, self._group = groups, group
        self._layers: list[PooledLayer] = []
        for owner, of_layer in enumerate(features):
            layer = PooledLayer.of(of_layer, config, group)
            self._layers.append(layer if owner == group.rank else layer.without_covariances())
        decomposed = self._decomposed()
        self._routes = [one.route for one in decomposed]
        self._numbers = [OnHost(one.numbers) for one in decomposed]
        self._sums = [
            OnHost(layer.sample_sums(one.sizes, one.to_text, one.to_vision)) if groups else None
            for layer, one in zip(self._layers, decomposed, strict=True)
        ]
        # Now, while the features are there: the next layer but one may take their place.
        self._without = self._distances_without(heavy)

    def finished(self) -> list[FinishedLayer]:
        """The numbers, on the host. Collective."""
        with self._group.agreed(self._task):
            distances = [
                layer.distance_of(numbers.read().tolist(), route)
                for layer, numbers, route in zip(self._layers, self._numbers, self._routes, strict=True)
            ]
        found = []
        for layer, distance, sums, without in zip(self._layers, distances, self._sums, self._without, strict=True):
            influences = None
            if sums is not None:
                of_samples = layer.influences_of(sums.read(), distance.distance, distance.scale)
                influences = grouped_influences(of_samples, self._groups, distance.distance, without)
            found.append(FinishedLayer(distance, influences))
        return found

    @property
    def _task(self) -> str:
        return f"the distance of layer {self._layers[0].layer}" + (
            f" to {self._layers[-1].layer}" if len(self._layers) > 1 else ""
        )

    @property
    def _own(self) -> PooledLayer | None:
        """The layer that this process decomposes."""
        return self._layers[self._group.rank] if self._group.rank < len(self._layers) else None

    def _decomposed(self) -> list[Decomposed]:
        """Of all layers, each from the process that made it."""
        own = None
        with self._group.agreed(self._task):
            if self._own is not None:
                own = self._own.decomposed(with_maps=bool(self._groups))
        shapes = self._group.all_gather_object(_described(own) if own is not None else None)
        device = self._layers[0].scale.device
        found = []
        for source, described in enumerate(shapes[: len(self._layers)]):
            assert described is not None, "each of the first processes has a layer"
            route, of_tensors = described
            tensors = (
                _tensors(own)
                if own is not None and source == self._group.rank
                else [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in of_tensors]
            )
            found.append(Decomposed(route, *(self._group.broadcast_tensor(one, source) for one in tensors)))
        return found

    def _distances_without(self, heavy: Sequence[int]) -> list[dict[int, float | None]]:
        """Of each layer, without each heavy group."""
        without: list[dict[int, float | None]] = [{} for _ in self._layers]
        for one in heavy:
            left_out = torch.tensor(self._groups) == one
            remaining = [layer.remaining(left_out) for layer in self._layers]
            with self._group.agreed(self._task):
                rest = remaining[self._group.rank] if self._own is not None else None
                own = None if rest is None else rest.distance()
            of_owners = self._group.all_gather_object(own)[: len(self._layers)]
            for of_layer, distance in zip(without, of_owners, strict=True):
                of_layer[one] = distance
        return without


def _tensors(one: Decomposed) -> list[torch.Tensor]:
    return [one.numbers, one.sizes, one.to_text, one.to_vision]


def _described(one: Decomposed) -> tuple[str, list[tuple[torch.Size, torch.dtype]]]:
    """What the other processes need to receive it."""
    return one.route, [(tensor.shape, tensor.dtype) for tensor in _tensors(one)]


def _wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that the time is booked where it belongs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
