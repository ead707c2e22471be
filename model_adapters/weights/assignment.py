"""Gives the parameters of a module their weights, strictly: nothing missing, nothing left over, nothing damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.key_rules import listed
from mir_plugin.model_adapters.weights.stored import Weight

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_empty(build: Callable[[], ModuleT]) -> ModuleT:
    """The module that ``build`` returns, in evaluation mode, its parameters without memory (meta device).

    Buffers are real: those that no checkpoint stores (rotary frequencies, position ids) are computed as usual.
    """
    with init_empty_weights(include_buffers=False):
        module = build()
    for part in module.modules():
        tie = getattr(part, "tie_weights", None)
        if callable(tie):  # sharing does not survive being moved to the meta device
            tie()
    return module.eval().requires_grad_(False)


def assign(module: nn.Module, weights: Mapping[str, Weight], device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter and stored buffer of a module its weight, one at a time; nothing missing, nothing left over.

    Floating-point values are cast to ``dtype``; buffers that no checkpoint stores move to ``device`` and keep their
    dtype. A parameter shared by several names (tied embeddings) may be stored under any of them.

    Raises:
        MirError: if a parameter has no weight, a weight no parameter, a shape differs, numbers are quantised, a value
            is NaN or infinite, or a matrix nothing but zeros.
            Nothing has been assigned when names or shapes are wrong.
    """
    for names, current, weight in _fitting(module, weights):
        value = _checked(weight, names[0], device, dtype if current.is_floating_point() else current.dtype)
        new = nn.Parameter(value, requires_grad=False) if isinstance(current, nn.Parameter) else value
        for name in names:
            _set(module, name, new)
    for name, buffer in list(module.named_buffers()):
        if buffer.device != device:
            _set(module, name, buffer.to(device))


def check_fit(module: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Raise MirError, as ``assign`` would, where names, shapes or kinds of numbers disagree; reads nothing."""
    _fitting(module, weights)


def require_sound(value: Tensor, name: str, origin: str) -> None:
    """Raise MirError, naming ``origin``, where a value holds NaN or infinity, or a weight matrix nothing but zeros.

    Vectors and what has other names may be zero, as may LoRA's second factor where training has not begun.
    """
    if not value.is_floating_point() or value.numel() == 0:
        return
    low, high = torch.aminmax(value.detach())
    is_matrix = value.ndim == 2 and min(value.shape) > 1 and name.endswith(".weight") and "lora_" not in name
    if is_matrix and low == 0 and high == 0:
        raise MirError(
            f"{origin} contains only zeros, as if it had never been written. The checkpoint is "
            "damaged: copy or download it again."
        )
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise MirError(
            f"{origin} holds NaN or infinite values as {dtype_name(value.dtype)}. The checkpoint is damaged or its "
            "training diverged; if it overflows this dtype, use --dtype float32."
        )


def release(module: nn.Module) -> None:
    """Return a module's parameters to the meta device, freeing their memory."""
    for names, current in _slots_by_tensor(module):
        if isinstance(current, nn.Parameter):
            empty = nn.Parameter(torch.empty_like(current, device="meta"), requires_grad=False)
            for name in names:
                _set(module, name, empty)


def _slots_by_tensor(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    by_identity: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(by_identity.values())


def _fitting(module: nn.Module, weights: Mapping[str, Weight]) -> list[tuple[list[str], Tensor, Weight]]:
    """Every parameter and stored buffer: its names, itself, its weight; all names and shapes checked."""
    slots = _slots_by_tensor(module)
    _check_names(slots, weights)
    fitting = []
    for names, current in slots:
        weight = next(weights[name] for name in names if name in weights)
        if tuple(current.shape) != weight.shape:
            raise MirError(
                f"{weight.origin} has shape {list(weight.shape)}, but {names[0]!r} of the model that config.json "
                f"describes has {list(current.shape)}. {_shape_hint(names[0])}"
            )
        if current.is_floating_point() and not weight.dtype.is_floating_point:
            raise MirError(
                f"{weight.origin} is stored as {dtype_name(weight.dtype)}, not as floating-point numbers. "
                f"Quantised weights are not measured: use the checkpoint they were made from."
            )
        fitting.append((names, current, weight))
    return fitting


def _check_names(slots: Sequence[tuple[list[str], Tensor]], weights: Mapping[str, Weight]) -> None:
    missing = [names[0] for names, _ in slots if not any(name in weights for name in names)]
    wanted = {name for names, _ in slots for name in names}
    extra = [weight.origin for name, weight in weights.items() if name not in wanted]
    files = sorted({weight.origin.rpartition(" in ")[2] for weight in weights.values()})
    if missing:
        raise MirError(
            f"no weights for {len(missing)} of {len(slots)} parameters: {listed([repr(name) for name in missing])}. "
            f"Searched: {listed(files) or 'no file'}. "
            f"The checkpoint is incomplete or its config.json describes another model."
        )
    if extra:
        raise MirError(
            f"{len(extra)} of {len(weights)} weights fit no parameter of the model that config.json describes: "
            f"{listed(extra)}. The config describes another model, or the files of two checkpoints are mixed."
        )


def _checked(weight: Weight, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    value = weight.read().to(device=device, dtype=dtype)
    require_sound(value, name, weight.origin)
    return value


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner_name, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner_name), attribute, value)


def _shape_hint(name: str) -> str:
    if "embed" in name or "lm_head" in name:
        return (
            "The vocabulary was resized (image tokens were added) without updating 'vocab_size', or the base differs."
        )
    return "The weights belong to a model of another size or kind than config.json (or the base LLM) says."
