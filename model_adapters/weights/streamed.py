"""Decoder weights that do not fit the device: left on disk, read one layer at a time when the engine asks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.assignment import assign, check_fit, release
from mir_plugin.model_adapters.weights.key_rules import weights_below
from mir_plugin.model_adapters.weights.stored import Weight
from mir_plugin.types import Decoder

logger = logging.getLogger(__name__)

# Of the allowed memory, for weights; the rest is for one layer's features of all samples, and their statistics.
SHARE_FOR_WEIGHTS = 0.7


class StreamedLayers:
    """Loads and releases the decoder layers of a model: the engine's ``LayerWeights``."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        weights: Sequence[Mapping[str, Weight]],
        device: torch.device,
        dtype: torch.dtype,
        *,
        room_for_two: bool,
    ) -> None:
        for layer, own in zip(layers, weights, strict=True):
            check_fit(layer, own)
        self._layers, self._weights, self._device, self._dtype = layers, weights, device, dtype
        self.layer_bytes = max(n_bytes(own.values(), dtype) for own in weights)
        self.room_for_two = room_for_two
        logger.info("%d decoder layers of %.0f MB are streamed from disk", len(layers), self.layer_bytes / 1e6)

    def load(self, layer_index: int) -> None:
        """Read a layer's weights. Raises MirError if they are damaged."""
        assign(self._layers[layer_index], self._weights[layer_index], self._device, self._dtype)

    def release(self, layer_index: int) -> None:
        """Return a layer's parameters to the meta device."""
        release(self._layers[layer_index])


@dataclass(frozen=True)
class Fit:
    """What has room in the allowed device memory: the whole decoder, two layers at a time, or one."""

    whole: bool
    two_layers: bool


def fit_within(device_memory: int, *, layers: Sequence[int], others: int) -> Fit:
    """How decoder layers fit beside all other weights.

    Args:
        device_memory: bytes to stay within.
        layers: bytes of each decoder layer.
        others: bytes of what stays on the device.
    Raises:
        MirError: if not even one layer fits.
    """
    room = SHARE_FOR_WEIGHTS * device_memory - others
    if max(layers) > room:
        least = math.ceil((max(layers) + others) / SHARE_FOR_WEIGHTS / 1e8) / 10  # GB, never rounded down
        raise MirError(
            f"{device_memory / 1e9:.2f} GB of device memory is too little: vision tower, projector and embeddings "
            f"take {others / 1e9:.2f} GB and one decoder layer {max(layers) / 1e9:.2f} GB. "
            f"With features and statistics, it takes at least --device-memory {least:.1f}GB."
        )
    return Fit(whole=sum(layers) <= room, two_layers=2 * max(layers) <= room)


def assign_within(
    model: nn.Module,
    weights: Mapping[str, Weight],
    device: torch.device,
    dtype: torch.dtype,
    *,
    layers: str,
    device_memory: int | None,
) -> StreamedLayers | None:
    """Give an empty model its weights, as ``assign`` does; where they do not fit, all but those of its decoder layers.

    Args:
        layers: name of the list of decoder layers in the model.
        device_memory: bytes to stay within; None for no limit.
    Returns:
        What loads the decoder layers, or None if they are loaded for good.
    Raises:
        MirError: as ``assign`` and ``fit_within``.
    """
    if device_memory is None:
        assign(model, weights, device, dtype)
        return None
    by_layer = [weights_below(weights, f"{layers}.{k}.") for k in range(len(_list_at(model, layers)))]
    others = {name: weight for name, weight in weights.items() if not name.startswith(f"{layers}.")}
    fit = fit_within(
        device_memory,
        layers=[n_bytes(own.values(), dtype) for own in by_layer],
        others=n_bytes(others.values(), dtype),
    )
    if fit.whole:
        assign(model, weights, device, dtype)
        return None
    with _taken_out(model, layers) as taken:
        assign(model, others, device, dtype)
    return StreamedLayers(list(taken), by_layer, device, dtype, room_for_two=fit.two_layers)


def require_resident(decoder: Decoder) -> None:
    """Raise MirError where decoder layers are streamed: generating would read every layer once a token."""
    if decoder.streamed is not None:
        raise MirError(
            "this checkpoint's decoder layers are streamed from disk (--device-memory): MIR can be measured, but "
            "no prompts answered. Load it without --device-memory, or with more of it."
        )


def n_bytes(weights: Iterable[Weight | Tensor], dtype: torch.dtype) -> int:
    """Memory of the weights once they are loaded as ``dtype``."""
    return sum(math.prod(weight.shape) for weight in weights) * dtype.itemsize


@contextmanager
def _taken_out(model: nn.Module, name: str) -> Iterator[nn.ModuleList]:
    """The model without this list of modules, for the length of the block."""
    owner_name, _, attribute = name.rpartition(".")
    owner, taken = model.get_submodule(owner_name), _list_at(model, name)
    setattr(owner, attribute, nn.ModuleList())
    try:
        yield taken
    finally:
        setattr(owner, attribute, taken)


def _list_at(model: nn.Module, name: str) -> nn.ModuleList:
    return cast("nn.ModuleList", model.get_submodule(name))
