"""Data passed between the steps, and the interface that a model has to offer.

Axes have the same names everywhere: ``samples`` (of one batch), ``tokens`` (positions of the decoder's sequence,
or rows pooled over samples), ``d`` (hidden width of the language model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mir_plugin.samples.sample_set import Sample


@dataclass(frozen=True)
class SampleInputs:
    """What one sample became before it reached the model, as digests (``mir_plugin.files.fingerprint.digest``).

    Attributes:
        token_ids: of the prompt's ids without padding; image positions count with whatever stands there.
        pixels: of everything the image became, as prepared: before it takes the model's dtype and device.
        pixel_shape: for people, such as "3x336x336".
        cut: whether a part of the text was cut off.
    """

    token_ids: str
    pixels: str
    pixel_shape: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Batch:
    """One or more samples, ready for a forward pass.

    Attributes:
        inputs: what the adapter's ``forward`` needs; opaque to everything else.
        vision_mask: bool (samples, tokens), true on vision tokens, in the sequence the decoder layers see.
        text_mask: bool (samples, tokens), true on text tokens: every position after the image block, padding excluded.
        sample_ids: one per row of the masks.
        prepared: what each sample became; empty where the adapter does not say.
    """

    inputs: Mapping[str, Any]
    vision_mask: Tensor
    text_mask: Tensor
    sample_ids: tuple[str, ...]
    prepared: tuple[SampleInputs, ...] = ()


class LayerWeights(Protocol):
    """Loads the weights of decoder layers while they are needed, for models that do not fit in memory.

    Attributes:
        layer_bytes: memory of the largest layer.
        room_for_two: whether the next layer may be loaded while one is in use.
    """

    layer_bytes: int
    room_for_two: bool

    def load(self, layer_index: int) -> None:
        """Put a layer's (0-based) weights on the device; may run in a thread while another layer is in use."""
        ...

    def release(self, layer_index: int) -> None:
        """Free a layer's memory."""
        ...


@dataclass(frozen=True)
class Decoder:
    """The language model's stack: what the engine replays.

    ``layers[k]`` is called as ``layer(hidden_states, **recorded_kwargs)``; ``final_norm`` follows the last one.
    ``streamed`` is None when all weights are resident; else layers have weights only between its ``load`` and
    ``release``. ``layer_kinds`` names what each layer is (for example
    "full_attention", "sliding_attention") where that decides its arguments; empty when all layers are alike.
    The modules before the first layer have weights inside ``outside()``, the final norm always.
    Where ``collective``, weights are gathered from all processes: each of them enters ``outside()``, loads and releases
    together with the others, whether it has samples or not.
    """

    layers: Sequence[nn.Module]
    final_norm: nn.Module
    streamed: LayerWeights | None = None
    layer_kinds: tuple[str, ...] = ()
    outside: Callable[[], AbstractContextManager[object]] = nullcontext
    collective: bool = False


class ModelAdapter(Protocol):
    """A loaded checkpoint, as the engine sees it.

    Attributes:
        family: name in the adapter table, for example "llava-1.5".
        facts: what was recognised and chosen while loading (paths, dtype, vision tower, projector, MoCa, ...);
            plain JSON values, stored with every result. Always holds "prompt_template", the exact text around image
            and sample text, and "checkpoint_fingerprint" (``mir_plugin.files.fingerprint``): both decide which results
            may be compared. Where it was loaded from disk, "source_folders" lists every folder that was read, and the
            fingerprint is theirs, taken before the first weight was read.
        device: where hidden states live.
        decoder: the language model's layers.
    """

    family: str
    facts: Mapping[str, Any]
    device: torch.device
    decoder: Decoder

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Prompt, token ids, pixels and masks of the samples; right-padded to one length. Runs no decoder layer."""
        ...

    def forward(self, batch: Batch) -> Any:
        """One prefill without cache and without logits where possible; returns the decoder's last hidden state."""
        ...

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """State that decoder layers need besides their arguments (MoCa's vision mask), for one batch.

        May read the masks alone: while layers are replayed, ``batch.inputs`` is empty.
        """
        ...


@dataclass(frozen=True)
class TokenFeatures:
    """Hidden states of all samples at one layer, split by modality, in sample order.

    Attributes:
        layer: 1..L; the last is taken after the final norm.
        vision, text: (tokens, d), rows pooled over samples.
        vision_counts, text_counts: rows per sample; they sum to the row counts.
        sample_ids: one per count, to name a sample in an error; empty where nobody knows them.
    """

    layer: int
    vision: Tensor
    text: Tensor
    vision_counts: tuple[int, ...]
    text_counts: tuple[int, ...]
    sample_ids: tuple[str, ...] = ()
