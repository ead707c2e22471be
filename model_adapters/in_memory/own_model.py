"""A live model of one's own class: a function says what its samples become, its modules say where the decoder is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import final_norm_beside, find_decoder, of_another_modality
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, Decoder

Encode = Callable[[Sequence[Sample]], tuple[Mapping[str, Any], Tensor, Tensor]]


@dataclass(frozen=True)
class OwnModel:
    """How to measure a model of one's own class.

    Attributes:
        encode: from samples to the arguments of the model's forward pass, and the masks of vision and of text tokens,
            bool (samples, tokens), in the sequence that the decoder layers see: vision tokens, and every real position
            after them.
        layers: path of the decoder layers in the model, such as "decoder.blocks"; found if None.
        final_norm: path of the norm that follows them; found if None.
        max_batch: most samples that ``encode`` takes at once.
    """

    encode: Encode
    layers: str | None = None
    final_norm: str | None = None
    max_batch: int | None = 1

    @property
    def name(self) -> str:
        """Module and name of the function."""
        return f"{self.encode.__module__}.{getattr(self.encode, '__qualname__', type(self.encode).__name__)}"


class OwnModelAdapter:
    """A live model and its ``OwnModel``, as the engine sees them.

    Attributes:
        family: the model's class.
        facts: class and function; "checkpoint_fingerprint" is for the caller to add.
        device: of its first parameter.
        decoder: as found or named.
        max_batch: as given.
    """

    def __init__(self, model: nn.Module, own: OwnModel) -> None:
        self._model, self._own = model, own
        self.family = type(model).__name__
        self.decoder: Decoder = _decoder(model, own)
        self.max_batch = own.max_batch
        self.device: torch.device = next(model.parameters()).device
        self.facts: Mapping[str, Any] = {
            "model_class": self.family,
            "n_layers": len(self.decoder.layers),
            "prompt_template": own.name,
        }

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """What the function makes of the samples.

        Raises:
            MirError: if its masks do not fit the samples or each other.
        """
        inputs, vision, text = self._own.encode(samples)
        names = ", ".join(sample.sample_id for sample in samples)
        if vision.shape != text.shape or vision.dim() != 2 or len(vision) != len(samples):
            raise MirError(
                f"sample {names}: {self._own.name} gives masks of shapes {tuple(vision.shape)} and "
                f"{tuple(text.shape)}; expected two of shape ({len(samples)}, tokens)."
            )
        if vision.dtype != torch.bool or text.dtype != torch.bool or bool((vision & text).any()):
            raise MirError(f"sample {names}: the masks of {self._own.name} must be bool and must not overlap.")
        placed = {name: _to(value, self.device) for name, value in inputs.items()}
        return Batch(
            placed, vision.to(self.device), text.to(self.device), tuple(sample.sample_id for sample in samples)
        )

    def forward(self, batch: Batch) -> Tensor:
        """One forward pass; returns what the final norm returned, (samples, tokens, d)."""
        last: list[Tensor] = []
        hook = self.decoder.final_norm.register_forward_hook(lambda _, __, output: last.append(output))
        try:
            self._model(**batch.inputs)
        finally:
            hook.remove()
        return last[-1]

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()


def _decoder(model: nn.Module, own: OwnModel) -> Decoder:
    if own.layers is None and hasattr(getattr(model, "config", None), "get_text_config"):
        return find_decoder(model)
    path = own.layers or _only_stack(model)
    try:
        layers, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
        norm = model.get_submodule(own.final_norm) if own.final_norm else None
    except AttributeError as error:
        raise MirError(f"{type(model).__name__} has no module {path!r} or {own.final_norm!r}: {error}.") from error
    found = norm if norm is not None else final_norm_beside(parent, path, type(model).__name__)
    return Decoder(layers=tuple(layers.children()), final_norm=found)


def _only_stack(model: nn.Module) -> str:
    stacks = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not of_another_modality(path)
    }
    outer = [path for path in stacks if not any(path.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1:
        raise MirError(
            f"{type(model).__name__} should hold one list of decoder layers; found: {', '.join(outer) or 'none'}. Name "
            "it: adapter=OwnModel(encode, layers='decoder.blocks', final_norm='decoder.norm')."
        )
    return str(outer[0])


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_to(part, device) for part in value] if isinstance(value, list) else value
