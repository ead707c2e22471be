"""Finds module, processor or tokenizer inside a host tool's own model object, whatever its attributes are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.in_memory.initial_weights import require_loaded_weights
from mir_plugin.model_adapters.introspection.decoder import unwrapped

if TYPE_CHECKING:
    from mir_plugin.types import ModelAdapter

# As found in lmms-eval 0.7.3 and VLMEvalKit e8e78f05; the first that fits wins.
MODEL_NAMES = ("_model", "model", "vlm", "reason_model", "llm")
PROCESSOR_NAMES = ("processor", "_processor", "image_processor", "_image_processor")
TOKENIZER_NAMES = ("tokenizer", "_tokenizer")
PATH_NAMES = ("pretrained", "model_path", "path")


def loaded_parts(host_model: Any) -> tuple[Any, Any]:
    """The torch module and the transformers processor that a host tool's model object holds; neither is changed.

    Raises:
        MirError: for models behind an API or another inference engine, and for models whose tokenizer and image
            processor are separate; says why, and what to measure instead.
    """
    holder = _holder(host_model)
    processor = next((value for value in _parts(holder, host_model, PROCESSOR_NAMES) if is_processor(value)), None)
    if processor is None:
        raise MirError(
            f"{type(host_model).__name__} cannot be measured, because it holds no processor for images and text "
            f"together (looked for {', '.join(PROCESSOR_NAMES)}); {_what_instead(host_model)}"
        )
    return unwrapped(_modules(holder)[0]), processor


def adapter_for(host_model: Any) -> ModelAdapter:
    """The model that a host tool's object holds, ready to be measured: of transformers, or of original LLaVA code.

    Raises:
        MirError: for a model that cannot be measured as it is loaded, or whose weights are not its checkpoint's; says
            why, and what to measure instead.
    """
    from mir_plugin.model_adapters.huggingface.adapter import from_loaded
    from mir_plugin.model_adapters.in_memory.original_llava import SPLICE, from_original

    holder = _holder(host_model)
    module = unwrapped(_modules(holder)[0])
    require_loaded_weights(module, checkpoint_name(host_model) or type(host_model).__name__)
    tokenizers = _parts(holder, host_model, TOKENIZER_NAMES)
    processors = _parts(holder, host_model, PROCESSOR_NAMES)
    if not any(map(is_processor, processors)) and tokenizers and processors and hasattr(module, SPLICE):
        mode = getattr(host_model, "conv_mode", None) or "llava_v1"
        return from_original(module, tokenizers[0], processors[0], mode, checkpoint_name(host_model))
    return from_loaded(*loaded_parts(host_model), checkpoint=checkpoint_name(host_model))


def is_processor(value: Any) -> bool:
    """Whether the object encodes images and text together: a call, a tokenizer and an image processor."""
    return callable(value) and hasattr(value, "tokenizer") and hasattr(value, "image_processor")


def checkpoint_name(host_model: Any) -> str | None:
    """Path or hub name of what a host tool's model object has loaded; None where it does not say."""
    holders = [host_model, *_inside(host_model)]
    modules = [module for holder in holders for module in _modules(holder)]
    paths = [*_values(host_model, PATH_NAMES), *(getattr(module, "name_or_path", None) for module in modules)]
    return next((path for path in paths if isinstance(path, str) and path), None)


def _holder(host_model: Any) -> Any:
    """The object that holds the torch module: the host's own, or the first of its workers that does.

    Workers are copies of one model for several devices, as in lmms-eval's ``async_hf_model``.

    Raises:
        MirError: if none does.
    """
    for holder in (host_model, *_inside(host_model)):
        if _modules(holder):
            return holder
    raise MirError(
        f"{type(host_model).__name__} cannot be measured, because no torch module was found in it (looked for "
        f"{', '.join(MODEL_NAMES)}, also one level deeper). MIR needs the hidden states of every layer, which API "
        "models and engines such as vLLM or SGLang do not give; use a model class that loads the weights with "
        f"transformers, or `mir run {checkpoint_name(host_model) or 'CHECKPOINT'}`."
    )


def _inside(host_model: Any) -> Iterator[Any]:
    """Plain objects among an object's attributes and in its lists and dictionaries, in order."""
    for value in vars(host_model).values() if hasattr(host_model, "__dict__") else ():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        for part in parts:
            if hasattr(part, "__dict__") and not isinstance(part, (nn.Module, type)):
                yield part


def _parts(holder: Any, host_model: Any, names: tuple[str, ...]) -> list[Any]:
    """What lies beside the module, else what the host's own object has."""
    return _values(holder, names) or _values(host_model, names)


def _modules(holder: Any) -> list[nn.Module]:
    return [value for value in _values(holder, MODEL_NAMES) if isinstance(value, nn.Module)]


def _what_instead(host_model: Any) -> str:
    checkpoint = checkpoint_name(host_model) or "CHECKPOINT"
    if _parts(_holder(host_model), host_model, TOKENIZER_NAMES):
        return (
            f"its tokenizer stands alone, as in code of the model's own. Measure the checkpoint with `mir run "
            f"{checkpoint}`, which loads original LLaVA formats and every Hugging Face format itself."
        )
    return f"measure the checkpoint with `mir run {checkpoint}`."


def _values(host_model: Any, names: tuple[str, ...]) -> list[Any]:
    """Attributes that exist and are not None. Some hosts' properties raise when the part was never loaded."""
    found = []
    for name in names:
        try:
            value = getattr(host_model, name, None)
        except (RuntimeError, TypeError, ValueError, KeyError, NotImplementedError):
            continue
        if value is not None:
            found.append(value)
    return found
