"""Modality calibration (MoCa): a learned scale and shift of the vision tokens at the end of every decoder layer.

h ← scale ⊙ h + shift, on vision tokens only, in float32, after the residual sum of the layer's MLP (Huang et al. 2024,
arXiv:2410.07167, section 4; ``modality_layernorm`` in the released code). It acts on the prompt: at decode steps of a
generation no vision token is fed.

Calibration is part of the layer, not a forward hook: with hooks, transformers 5 records hidden states of the second
and later forwards before the calibration has acted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError


class VisionPositions:
    """Which positions of the running batch are vision tokens; shared by all calibrated layers of a model."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    @contextmanager
    def bound_to(self, vision_mask: Tensor) -> Iterator[None]:
        """Calibrate these positions, bool (samples, tokens), inside the ``with`` block."""
        outer, self._mask = self._mask, vision_mask
        try:
            yield
        finally:
            self._mask = outer

    def mask_for(self, hidden_states: Tensor) -> Tensor | None:
        """The bound mask, or None at a decode step.

        Raises:
            MirError: if no mask is bound, or the bound one belongs to another batch.
        """
        if self._mask is None:
            raise MirError("a MoCa layer ran without knowing the vision tokens: run it inside `bound_to(batch)`.")
        n_samples, n_tokens = hidden_states.shape[:2]
        if n_tokens == 1 and self._mask.shape[1] > 1:
            return None
        if self._mask.shape != (n_samples, n_tokens):
            raise MirError(
                f"a MoCa layer got hidden states of {n_samples} x {n_tokens} positions, but the bound vision mask has "
                f"{list(self._mask.shape)}. Run each batch inside `bound_to` of that same batch."
            )
        return self._mask


class ModalityCalibration(nn.Module):
    """Learned scale and shift of vision tokens, (d,) each."""

    def __init__(self, d: int, positions: VisionPositions) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d))
        self.positions = positions

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states (samples, tokens, d) with the vision tokens calibrated, in the dtype they came in."""
        mask = self.positions.mask_for(hidden_states)
        if mask is None:
            return hidden_states
        calibrated = hidden_states.float() * self.scale.float() + self.shift.float()
        return torch.where(mask[..., None], calibrated.to(hidden_states.dtype), hidden_states)


class _CalibratedLayer(nn.Module):
    """Mixed in before a decoder layer's own class: its ``forward``, then the calibration."""

    modality_layernorm: ModalityCalibration

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if isinstance(output, tuple):
            return (self.modality_layernorm(output[0]), *output[1:])
        return self.modality_layernorm(output)


def calibrate(layers: Sequence[nn.Module], d: int) -> VisionPositions:
    """Give every decoder layer a calibration, in place; returns the shared positions to bind.

    Parameter names follow the original: ``modality_layernorm.scale`` and ``.shift`` inside each layer. A layer keeps
    its class as a base class, its parameters and its identity.
    """
    positions = VisionPositions()
    for layer in layers:
        layer.modality_layernorm = ModalityCalibration(d, positions)
        layer.__class__ = _calibrated_class(type(layer))
    return positions


def _calibrated_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    if issubclass(layer_class, _CalibratedLayer):
        raise MirError(f"{layer_class.__name__} is calibrated already; calibrate a model once.")
    if layer_class not in _CLASSES:
        _CLASSES[layer_class] = type(f"Calibrated{layer_class.__name__}", (_CalibratedLayer, layer_class), {})
    return _CLASSES[layer_class]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
