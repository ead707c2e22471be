"""Modality calibration (MoCa): a learned scale and shift of the vision tokens at the end of every decoder layer.

h ← scale ⊙ h + shift, on vision tokens only, in float32, after the residual sum of the layer's MLP (Huang et al. 2024,
arXiv:2410.07167, section 4; ``modality_layernorm`` in the released code). It acts on the prompt: at decode steps of a
generation no vision token is fed.

Calibration is part of the layer, not a forward hook: with hooks, transformers 5 records hidden states of the second
and later forwards before the calibration has acted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError

_MASK_ARGUMENT = "moca_vision_mask"


class VisionPositions:
    """Which positions of the running batch are vision tokens; shared by all calibrated layers of a model.

    Each thread has its own: replicas of a model that run in threads see different batches.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type[VisionPositions], tuple[()]]:
        return VisionPositions, ()  # a copy of a model is bound to nothing

    @property
    def mask(self) -> Tensor | None:
        """The bound mask, bool (samples, tokens), or None outside every ``bound_to``."""
        return getattr(self._of_thread, "mask", None)

    @contextmanager
    def bound_to(self, vision_mask: Tensor) -> Iterator[None]:
        """Calibrate these positions, bool (samples, tokens), inside the ``with`` block."""
        outer, self._of_thread.mask = self.mask, vision_mask
        try:
            yield
        finally:
            self._of_thread.mask = outer


class CarriesMoca(nn.Module):
    """A model of this package: its adapter says which positions of a batch are vision tokens.

    Attributes:
        moca_positions: what the calibrated layers ask for them; None without MoCa.
    """

    moca_positions: VisionPositions | None = None

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the language model."""
        raise NotImplementedError

    @property
    def hidden_size(self) -> int:
        """Width of their hidden states."""
        raise NotImplementedError

    def calibrating(self, vision_mask: Tensor) -> AbstractContextManager[None]:
        """Calibrate these positions, bool (samples, tokens), inside the ``with`` block; nothing without MoCa."""
        return nullcontext() if self.moca_positions is None else self.moca_positions.bound_to(vision_mask)


class ModalityCalibration(nn.Module):
    """Learned scale and shift of vision tokens, (d,) each; 1 and 0 at first, with normal noise of ``std`` if asked."""

    def __init__(self, d: int, std: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d))
        if std:
            nn.init.normal_(self.scale, 1.0, std)
            nn.init.normal_(self.shift, 0.0, std)

    def forward(self, hidden_states: Tensor, vision_mask: Tensor) -> Tensor:
        """Hidden states (samples, tokens, d) with the vision tokens calibrated, in the dtype they came in.

        The parameters take part even where the mask is empty, with gradients of zero: data-parallel training waits for
        the gradient of every parameter in every process.
        """
        # Half precision is computed in float32, as in the released code; float64 stays as it is.
        states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        calibrated = states * self.scale.to(states.dtype) + self.shift.to(states.dtype)
        return torch.where(vision_mask[..., None], calibrated.to(hidden_states.dtype), hidden_states)


def calibrate(layers: Sequence[nn.Module], d: int, std: float = 0.0) -> VisionPositions:
    """Give every decoder layer a calibration, in place; returns the shared positions to bind.

    Parameter names follow the original: ``modality_layernorm.scale`` and ``.shift`` inside each layer. A layer keeps
    its class as a base class, its parameters and its identity.

    Raises:
        MirError: if a layer is calibrated already.
    """
    if any(isinstance(layer, CalibratedLayer) for layer in layers):
        raise MirError("these decoder layers already have MoCa; apply it once.")
    positions = VisionPositions()
    for layer in layers:
        layer.modality_layernorm = ModalityCalibration(d, std)
        layer.vision_positions = positions  # type: ignore[assignment]
        swap_class(layer, CalibratedLayer)
    return positions


def uncalibrate(layers: Sequence[nn.Module]) -> None:
    """Undo ``calibrate``: the layers are what they were, in class and parameters."""
    for layer in layers:
        restore_class(layer)
        del layer.modality_layernorm, layer.vision_positions


class Swapped(nn.Module):
    """A module whose class was exchanged for a subclass of the same name; ``plain_class`` is what it was."""

    mixin: type[Swapped]
    plain_class: type[nn.Module]

    @classmethod
    def methods_around(cls, plain_class: type[nn.Module]) -> dict[str, Any]:
        """Methods of the new class that depend on those of the plain one."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickle looks a class up by its name, which leads to the plain one.
        return _blank, (self.mixin, self.plain_class), self.__dict__


class CalibratedLayer(Swapped):
    """Mixed in before a decoder layer's own class: its ``forward``, then the calibration."""

    modality_layernorm: ModalityCalibration
    vision_positions: VisionPositions

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer with the bound mask among its arguments.

        Gradient checkpointing keeps a layer's arguments for when it computes the layer again. That is in the backward
        pass, where no mask, or already another batch's, is bound.
        """
        kwargs.setdefault(_MASK_ARGUMENT, self.vision_positions.mask)
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer's own class returns, its hidden states calibrated."""
        mask = kwargs.pop(_MASK_ARGUMENT, None)
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (self._calibrated(output[0], mask), *output[1:])
        return self._calibrated(output, mask)

    def _calibrated(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            raise MirError(
                "a MoCa layer does not know which tokens are vision tokens: run it inside `bound_to(batch)`."
            )
        n_samples, n_tokens = hidden_states.shape[:2]
        if n_tokens == 1 and mask.shape[1] > 1:
            return hidden_states  # a decode step
        if mask.shape != (n_samples, n_tokens):
            raise MirError(
                f"a MoCa layer got hidden states of {n_samples} x {n_tokens} positions, but the bound vision mask has "
                f"{list(mask.shape)}. Run each batch inside `bound_to` of that same batch."
            )
        return cast("Tensor", self.modality_layernorm(hidden_states, mask.to(hidden_states.device)))


def swap_class(module: nn.Module, mixin: type[Swapped]) -> None:
    """Make the module an instance of ``mixin`` and its own class together."""
    module.__class__ = _swapped_class(mixin, type(module))


def restore_class(module: nn.Module) -> None:
    """Give the module its own class back.

    Raises:
        MirError: if its class was exchanged again since.
    """
    if "plain_class" not in vars(type(module)):
        raise MirError(
            f"{type(module).__name__} has no MoCa, or was wrapped after MoCa was applied (for example by FSDP). Remove "
            "MoCa from the unwrapped model."
        )
    module.__class__ = cast("Swapped", module).plain_class


def _swapped_class(mixin: type[Swapped], plain_class: type[nn.Module]) -> type[nn.Module]:
    if (mixin, plain_class) not in _CLASSES:
        # The plain class's name: transformers, accelerate and FSDP look classes up by it, and save it with the model.
        names = {"__module__": plain_class.__module__, "__qualname__": plain_class.__qualname__}
        members = {"mixin": mixin, "plain_class": plain_class, "__doc__": mixin.__doc__, **names}
        members |= mixin.methods_around(plain_class)
        _CLASSES[mixin, plain_class] = type(plain_class.__name__, (mixin, plain_class), members)
    return _CLASSES[mixin, plain_class]


def _blank(mixin: type[Swapped], plain_class: type[nn.Module]) -> nn.Module:
    swapped_class = _swapped_class(mixin, plain_class)
    return swapped_class.__new__(swapped_class)


_CLASSES: dict[tuple[type[Swapped], type[nn.Module]], type[nn.Module]] = {}
