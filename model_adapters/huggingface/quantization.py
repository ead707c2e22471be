"""Whether transformers can load a quantised checkpoint on this machine, and whether all of its weights are there."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.key_rules import listed
from mir_plugin.model_adapters.weights.quantization import as_plain, in_words, left_unfilled, quantization_of

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.model_adapters.huggingface.sources import Sources

_LONGEST_REASON = 400


def settings_in(sources: Sources) -> Mapping[str, Any] | None:
    """How the checkpoint is quantised; None if it is not. Raises MirError as ``quantization_of``."""
    return quantization_of(sources.config, sources.config_from / "config.json")


def require_loadable(sources: Sources, options: LoadOptions, device: str) -> None:
    """Ask transformers' own quantiser whether it can load the checkpoint here; says nothing of a plain one.

    Args:
        device: where the whole model will be.
    Raises:
        MirError: naming the method and what it needs; also for options that do not apply to quantised weights.
    """
    settings = settings_in(sources)
    if settings is None:
        return
    quantised = f"{sources.weights} is quantised ({in_words(settings)})"
    if options.device_memory is not None:
        raise MirError(f"{quantised}; quantised weights cannot be streamed. Leave out --device-memory.")
    stored = _dtype_in(sources.config)
    if options.dtype not in ("auto", stored):
        raise MirError(
            f"{quantised}; its other weights stay {stored or 'as they were saved'}, so --dtype {options.dtype} cannot "
            "apply. Leave out --dtype."
        )
    reason = _why_not(settings, device)
    if reason:
        raise MirError(
            f"{quantised}, which cannot be loaded here: {reason}. Install or use what that names, or measure the "
            "checkpoint it was made from."
        )


def require_all_weights(sources: Sources, options: LoadOptions) -> None:
    """Compare the stored keys with the parameters of the model before it was quantised; reads no weight.

    Raises:
        MirError: naming parameters that the checkpoint has nothing for.
    """
    import transformers

    source: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        sources.weights,
        config=as_plain(transformers.AutoConfig.from_pretrained(sources.config_from, **source)),
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **source,
    )
    if absent := left_unfilled(loaded[1]):
        raise MirError(
            f"{sources.weights} is missing weights ({len(absent)}): {listed(absent)}. They would be random numbers. "
            "Check that config.json and the weights files belong together."
        )


def facts_of(model: Any, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Facts on how a loaded model's weights are quantised: in words, and all settings. Nothing of a plain one.

    Args:
        stored: how its checkpoint is. transformers computes some formats as plain numbers where no kernel for them is.
    """
    settings = getattr(model.config, "quantization_config", None)
    if settings:
        settings = settings if isinstance(settings, Mapping) else settings.to_dict()
        return {"quantization": in_words(settings), "quantization_config": _as_json(settings)}
    if stored is not None:
        name = f"{in_words(stored)}, dequantised to {dtype_name(model.dtype)}"
        return {"quantization": name, "quantization_config": _as_json(stored)}
    return {}


def _why_not(settings: Mapping[str, Any], device: str) -> str:
    """Why transformers cannot load weights quantised like this; empty where it can.

    Methods say so with ImportError, RuntimeError, ValueError and others, and some import their library before they ask.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(dict(settings)), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except ModuleNotFoundError as error:
        return f"it needs the package {str(error.name).partition('.')[0]}"
    except Exception as error:
        return " ".join(str(error).split()).partition(" - supported types")[0][:_LONGEST_REASON].rstrip(".")
    return ""


def _dtype_in(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config.json states for the model or its language model."""
    text = config.get("text_config")
    stated = (
        part.get(name) for part in (config, text) if isinstance(part, Mapping) for name in ("dtype", "torch_dtype")
    )
    return next((str(name) for name in stated if name), None)


def _as_json(settings: Mapping[str, Any]) -> Any:
    public = {name: value for name, value in settings.items() if not name.startswith("_")}
    return json.loads(json.dumps(public, default=lambda value: str(getattr(value, "value", value))))
