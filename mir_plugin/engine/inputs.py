"""What reached the model, noted while batches pass: whatever changes a number without changing a file shows here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mir_plugin.files.fingerprint import digest
from mir_plugin.types import Batch, ModelAdapter, SampleInputs


class ReceivedSample(NamedTuple):
    """One sample as the decoder received it: digest of the tokens' places, how many there are, and what it was."""

    positions: str
    n_vision_tokens: int
    n_text_tokens: int
    prepared: SampleInputs | None


@dataclasses.dataclass
class ReceivedInputs:
    """Collects what reached the model.

    Attributes:
        samples: by their index.
        compute_dtype: of the decoder's hidden states, and of autocast where it is on.
    """

    samples: dict[int, ReceivedSample] = dataclasses.field(default_factory=dict)
    compute_dtype: str = ""

    def add(self, batch: Batch, indices: Sequence[int]) -> None:
        """Note a batch that holds the samples of these indices."""
        kinds = (batch.vision_mask.to(torch.int8) + 2 * batch.text_mask.to(torch.int8)).cpu()
        for row, index in enumerate(indices):
            prepared = batch.prepared[row] if batch.prepared else None
            self.samples[index] = _received(kinds[row], prepared)

    def computed(self, state: Tensor) -> None:
        """Note in which dtype a hidden state is computed, as it reaches the first decoder layer."""
        kind = state.device.type
        self.compute_dtype = str(state.dtype).removeprefix("torch.")
        if torch.is_autocast_enabled(kind):
            self.compute_dtype += f", autocast {str(torch.get_autocast_dtype(kind)).removeprefix('torch.')}"

    def in_order(self) -> list[ReceivedSample]:
        """The samples in their order."""
        return [sample for _, sample in sorted(self.samples.items())]


def described(samples: Sequence[ReceivedSample], compute_dtype: str, adapter: ModelAdapter) -> dict[str, Any]:
    """What ``mir.json`` says of the inputs; digests of all samples stand in one line each, in their order."""
    prepared = [one.prepared for one in samples if one.prepared is not None]
    known = len(prepared) == len(samples)
    shapes = [one.pixel_shape for one in prepared]
    return {
        "token_ids": " ".join(one.token_ids for one in prepared) if known else None,
        "positions": " ".join(one.positions for one in samples),
        "pixels": " ".join(one.pixels for one in prepared) if known else None,
        "pixel_shapes": {shape: shapes.count(shape) for shape in sorted(set(shapes))},
        "n_vision_tokens": sum(one.n_vision_tokens for one in samples),
        "n_text_tokens": sum(one.n_text_tokens for one in samples),
        "n_cut_texts": sum(one.cut for one in prepared) if known else None,
        "weights_dtype": _weights_dtype(adapter),
        "compute_dtype": compute_dtype,
        "attention": adapter.facts.get("attention"),
        "host_settings": adapter.facts.get("host_settings", {}),
    }


def _received(kinds: Tensor, prepared: SampleInputs | None) -> ReceivedSample:
    """From what stands at each position: 1 a vision token, 2 a text token, 0 neither; padding stands at the end."""
    end = int(kinds.nonzero().max()) + 1 if kinds.any() else 0
    places = digest([kinds[:end].contiguous().numpy().data])
    return ReceivedSample(places, int((kinds == 1).sum()), int((kinds == 2).sum()), prepared)


def _weights_dtype(adapter: ModelAdapter) -> str:
    dtypes = {p.dtype for layer in adapter.decoder.layers for p in layer.parameters() if p.is_floating_point()}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
