"""Finds module, processor or tokenizer inside a host tool's own model object, whatever its attributes are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import unwrapped

if TYPE_CHECKING:
    from mir_plugin.types import ModelAdapter

# As found in lmms-eval 0.7.3 and VLMEvalKit e8e78f05; the first that fits wins.
_MODEL_NAMES = ("_model", "model", "vlm", "reason_model", "llm")
_PROCESSOR_NAMES = ("processor", "_processor", "image_processor", "_image_processor")
_TOKENIZER_NAMES = ("tokenizer", "_tokenizer")
_PATH_NAMES = ("pretrained", "model_path", "path")


def loaded_parts(host_model: Any) -> tuple[Any, Any]:
    """The torch module and the transformers processor that a host tool's model object holds; neither is changed.

    Raises:
        MirError: for models behind an API or another inference engine, and for models whose tokenizer and image
            processor are separate; says why, and what to measure instead.
    """
    name = type(host_model).__name__
    module = next((value for value in _values(host_model, _MODEL_NAMES) if isinstance(value, nn.Module)), None)
    if module is None:
        raise MirError(
            f"{name} cannot be measured, because it holds no torch module (looked for {', '.join(_MODEL_NAMES)}): it "
            "is an API model, or runs in another engine such as vLLM or SGLang. MIR needs the hidden states of every "
            "layer; use a model class that loads the weights with transformers."
        )
    processor = next((value for value in _values(host_model, _PROCESSOR_NAMES) if is_processor(value)), None)
    if processor is not None:
        return unwrapped(module), processor
    raise MirError(
        f"{name} cannot be measured, because it holds no processor for images and text together (looked for "
        f"{', '.join(_PROCESSOR_NAMES)}); {_what_instead(host_model)}"
    )


def adapter_for(host_model: Any) -> ModelAdapter:
    """The model that a host tool's object holds, ready to be measured: of transformers, or of original LLaVA code.

    Raises:
        MirError: for a model that cannot be measured as it is loaded; says why, and what to measure instead.
    """
    from mir_plugin.model_adapters.huggingface.adapter import from_loaded
    from mir_plugin.model_adapters.in_memory.original_llava import SPLICE, from_original

    modules = [value for value in _values(host_model, _MODEL_NAMES) if isinstance(value, nn.Module)]
    tokenizers = _values(host_model, _TOKENIZER_NAMES)
    processors = _values(host_model, _PROCESSOR_NAMES)
    if not any(map(is_processor, processors)) and tokenizers and processors and modules:
        module = unwrapped(modules[0])
        if hasattr(module, SPLICE):
            return from_original(
                module, tokenizers[0], processors[0], getattr(host_model, "conv_mode", None) or "llava_v1"
            )
    return from_loaded(*loaded_parts(host_model))


def is_processor(value: Any) -> bool:
    """Whether the object encodes images and text together: a call, a tokenizer and an image processor."""
    return callable(value) and hasattr(value, "tokenizer") and hasattr(value, "image_processor")


def checkpoint_name(host_model: Any) -> str | None:
    """Path or hub name of what a host tool's model object has loaded; None where it does not say."""
    modules = [value for value in _values(host_model, _MODEL_NAMES) if isinstance(value, nn.Module)]
    paths = [*_values(host_model, _PATH_NAMES), *(getattr(module, "name_or_path", None) for module in modules)]
    return next((path for path in paths if isinstance(path, str) and path), None)


def _what_instead(host_model: Any) -> str:
    checkpoint = checkpoint_name(host_model) or "CHECKPOINT"
    if _values(host_model, _TOKENIZER_NAMES):
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
