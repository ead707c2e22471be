"""Quantised weights: what a config says of them, and the plain tensors they are made of. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIELD = "quantization_config"
_KINDS = ("bnb_4bit_quant_type", "format", "weights", "quant_type", "quant_algo")
_DEPTH_OF_PARTS = 3  # experts.gate_up_proj is stored as experts.0.gate_proj.qweight


def quantization_of(config: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """How the weights are quantised, as a checkpoint's config.json or the one of its language model says; else None.

    Args:
        path: of config.json, for the message.
    Raises:
        MirError: if that is no object.
    """
    text = config.get("text_config")
    found = config.get(_FIELD) or (text.get(_FIELD) if isinstance(text, Mapping) else None)
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise MirError(f"{path} has {_FIELD} = {found!r}, expected an object. Copy the checkpoint's own config.json.")
    return found


def in_words(settings: Mapping[str, Any]) -> str:
    """Method, bits and kind of a quantisation, for people.

    >>> in_words({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    'bitsandbytes, 4-bit, nf4'
    >>> in_words({"quant_method": "gptq", "bits": 4})
    'gptq, 4-bit'
    """
    of_bitsandbytes = [n for n in (4, 8) if settings.get(f"load_in_{n}bit")]
    bits = next(iter(of_bitsandbytes), settings.get("bits"))
    method = settings.get("quant_method") or ("bitsandbytes" if of_bitsandbytes else "method not stated")
    kinds = [settings.get(name) for name in _KINDS if name != "bnb_4bit_quant_type" or settings.get("load_in_4bit")]
    words = [getattr(method, "value", method), f"{bits}-bit" if bits else None, *map(_kind, kinds)]
    return ", ".join(str(word) for word in words if word)


def as_plain(config: Any) -> Any:
    """A copy of a transformers configuration, of the same model before it was quantised."""
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config(decoder=True)):
        if hasattr(part, _FIELD):
            delattr(part, _FIELD)
    return plain


def left_unfilled(report: Mapping[str, Any]) -> list[str]:
    """Parameters that a checkpoint has nothing for, by transformers' report of loading it as the plain model.

    Of a quantised parameter, codes, scales and zero points lie under other names below its module, which are
    "unexpected" then; the parameter itself is missing or of another shape.
    """
    unknown = [str(key).split(".") for key in report.get("unexpected_keys") or ()]
    quantised = {".".join(parts[:-n]) for parts in unknown for n in range(1, _DEPTH_OF_PARTS + 1)}
    keys = (key for kind in ("missing_keys", "mismatched_keys") for key in report.get(kind) or ())
    names = (str(key[0] if isinstance(key, tuple) else key) for key in keys)  # of another shape: with both shapes
    return [name for name in names if name.rpartition(".")[0] not in quantised]


def holds_codes(module: nn.Module) -> bool:
    """Whether a module's own parameters are integers that stand for other numbers."""
    return any(not parameter.is_floating_point() for parameter in module.parameters(recurse=False))


def in_training_mode(model: nn.Module) -> list[nn.Module]:
    """The modules to put into evaluation mode for a measurement, and back: those in training mode.

    Quantised layers are none of them. They have no dropout, and on some processors a 4-bit layer of bitsandbytes
    rearranges its weights for good when it runs in evaluation mode; no gradient passes it from then on.
    """
    return [module for module in model.modules() if module.training and not holds_codes(module)]


def plain_tensors(value: Tensor, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensor itself, or those that a quantised one wraps (torchao's), with their names behind the given one."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield name, value
        return
    for part in flatten()[0]:
        yield from plain_tensors(getattr(value, part), f"{name}.{part}")


def _kind(value: Any) -> str | None:
    """A kind as configs name it; torchao's stands inside objects."""
    if isinstance(value, Mapping):
        value = value.get("_type") or next((_kind(one) for one in value.values()), None)
    return value if isinstance(value, str) else None
