"""What the checkpoints of a sweep have in common: loaded weights, and the vision tower's view of the samples.

Checkpoints of one pre-training run differ in the projector; base LLM and vision tower are the same files. Each
checkpoint still gets a model of its own, built from its own config: only values are taken over, and only where they are
certain to be equal, so that every number is that of a single run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mir_plugin.model_adapters.weights.lora_layers import MergedWeight
from mir_plugin.model_adapters.weights.stored import StoredTensor, Weight
from mir_plugin.samples.sample_set import Sample

TOWER_PREFIX = "vision_tower."
# 100 images take 0.24 GB at LLaVA-1.5's size in float32; what does not fit is computed again.
MAX_FEATURE_BYTES = 4 << 30


@dataclass(frozen=True)
class LoadedWeight:
    """A weight whose value is on the device already; ``origin`` and ``source`` are those of the file."""

    value: Tensor
    origin: str
    source: Hashable

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the value."""
        return self.value.dtype

    def read(self) -> Tensor:
        """The value itself, where it is."""
        return self.value


class Seen(NamedTuple):
    """Vision-tower features (images, features, width) of a batch, and what identifies each of the images."""

    features: Tensor
    images: tuple[Any, ...]


class FeatureStore:
    """Vision-tower features of batches of samples, in host memory, for as long as the tower stays the same.

    Kept by batch and not by sample: what a tower computes may depend on the batch in the last bits.
    """

    def __init__(self) -> None:
        self._features: dict[tuple[int, ...], tuple[tuple[Sample, ...], Seen]] = {}
        self._n_bytes = 0

    @torch.no_grad()
    def of(self, samples: Sequence[Sample], compute: Callable[[], Seen]) -> Seen:
        """How the tower sees the images of these very samples; computed the first time, later from the CPU."""
        key = tuple(id(sample.image) for sample in samples)  # the proof of the replay shortens texts
        if key in self._features:
            return self._features[key][1]
        seen = compute()
        n_bytes = seen.features.numel() * seen.features.element_size()
        if self._n_bytes + n_bytes <= MAX_FEATURE_BYTES:
            self._n_bytes += n_bytes
            # Holding the samples keeps the ids of their images theirs.
            self._features[key] = (tuple(samples), seen._replace(features=seen.features.cpu()))
        return seen

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()
        self._n_bytes = 0


class SharedParts:
    """Handed from one ``load_adapter`` to the next; the adapter before has to be gone, or memory holds two models."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedWeight] = {}
        self._loaded_as: tuple[torch.device, torch.dtype] | None = None
        self._features = FeatureStore()
        self._seen_through: Any = None

    def known(self, weights: Mapping[str, Weight], device: torch.device, dtype: torch.dtype) -> dict[str, Weight]:
        """The mapping, with a loaded value wherever it is that of the same file and key; other values are forgotten.

        The vision tower counts by its content too: full checkpoints each hold a copy of a tower that never changed.
        """
        if self._loaded_as != (device, dtype):
            self._loaded, self._loaded_as = {}, (device, dtype)
        kept = {
            name: loaded
            for name, loaded in self._loaded.items()
            if name in weights and loaded.source == _source(weights[name])
        }
        copied = {
            name: LoadedWeight(self._loaded[name].value, weight.origin, _source(weight))
            for name, weight in weights.items()
            if name.startswith(TOWER_PREFIX) and name not in kept and self._is_copy(name, weight)
        }
        self._loaded = kept | copied
        if not all(name in self._loaded for name in weights if name.startswith(TOWER_PREFIX)):
            self._features.clear()
        return {**weights, **self._loaded}

    def keep(self, model: nn.Module, weights: Mapping[str, Weight]) -> None:
        """Remember the values that a model got from these weights."""
        state = model.state_dict(keep_vars=True)
        self._loaded = {
            name: LoadedWeight(state[name].detach(), weight.origin, _source(weight))
            for name, weight in weights.items()
            if name in state
        }

    def features_seen_through(self, tower_setup: Any) -> FeatureStore:
        """The features so far, or none where images are prepared or the tower is used in another way than before.

        Args:
            tower_setup: everything besides weights that features follow from; compared by equality.
        """
        if tower_setup != self._seen_through:
            self._features.clear()
            self._seen_through = tower_setup
        return self._features

    def _is_copy(self, name: str, weight: Weight) -> bool:
        loaded = self._loaded.get(name)
        return (
            loaded is not None
            and loaded.shape == weight.shape
            and torch.equal(loaded.value, weight.read().to(loaded.value))
        )


def _source(weight: Weight) -> Hashable:
    """What a value is read or computed from: keys, and files in their present state. Equal sources, equal values."""
    if isinstance(weight, LoadedWeight):
        return weight.source
    if isinstance(weight, MergedWeight):
        pair = weight.lora
        more = tuple(_source(tensor) for tensor in pair.more.values())
        return (_source(weight.base), _source(pair.up), _source(pair.down), pair.scale, pair.method, more)
    if isinstance(weight, StoredTensor):
        path = weight.path.resolve()
        state = path.stat()
        return (weight.key, path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    raise TypeError(f"{type(weight).__name__} does not say what it is read from")
