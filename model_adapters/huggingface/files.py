"""What the files of a Hugging Face folder must be before anything is built from them.

transformers does not say which file is damaged, builds parts that the config lacks at their published size (a missing
``text_config`` becomes 7 billion random numbers), and downloads attention code that a config names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.assignment import build_empty, require_sound
from mir_plugin.model_adapters.weights.config_values import impossible_rotation, is_norm_epsilon
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.quantization import plain_tensors, quantization_of
from mir_plugin.model_adapters.weights.stored import StoredTensor, open_checkpoint_weights, read_json

_JSON_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Tied weights are stored once and a saved model may leave its buffers out; a part that is missing is far more.
_MOST_PARAMETERS_PER_STORED = 1.5
_LARGEST_STD = 300.0  # of colours from 0 to 255, where they are not rescaled


def require_sound_files(
    checkpoint: Path, config: Mapping[str, Any], config_from: Path, *, may_run_code: bool, unpickle: bool = False
) -> None:
    """Read every JSON file and the headers of the weights, and compare their sizes with what the config describes.

    Args:
        checkpoint: folder of the weights.
        config_from: folder of config.json.
    Raises:
        MirError: naming the file, if one is damaged, the config asks for code from elsewhere, or describes a much
            larger model than the weights are.
    """
    for name in _JSON_FILES:
        if (checkpoint / name).is_file():
            read_json(checkpoint / name)
    require_sound_template(checkpoint)
    if not may_run_code:
        _refuse_kernels(config_from, config)
    _require_sensible_norms(config_from, config)
    _require_possible_rotation(config_from, config)
    if quantization_of(config, config_from / "config.json"):
        return  # stored in fewer numbers than the model has, and in dtypes of their own
    weights = open_checkpoint_weights(checkpoint, unpickle=unpickle)
    _require_floats(weights)
    _require_described_size(config_from, config, weights)


def require_sound_template(folder: Path) -> None:
    """Raise MirError for a chat template without content."""
    template = folder / "chat_template.jinja"
    if template.is_file() and not template.read_text(encoding="utf-8", errors="replace").strip():
        raise MirError(f"{template} is empty. Copy it from the base checkpoint, or remove it: there is a fallback.")


def skeleton(checkpoint: Path, *, trust_remote_code: bool = False) -> Any:
    """The model that a folder's config describes, its parameters without memory."""
    import transformers

    code = {"trust_remote_code": trust_remote_code}
    # Only parameters are without memory: some models compute with numbers of tensors while they are built.
    return build_empty(
        lambda: transformers.AutoModelForImageTextToText.from_config(
            transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True, **code), **code
        )
    )


def require_sound_parameters(model: nn.Module, checkpoint: Path) -> None:
    """Raise MirError naming the first parameter that ``require_sound`` refuses; streamed ones are checked when read."""
    for name, parameter in model.named_parameters():
        for part, value in plain_tensors(parameter, name):
            if not value.is_meta:
                # No statistics of 8-bit floats; they all fit into 16 bits.
                require_sound(
                    value.bfloat16() if value.itemsize == 1 and value.is_floating_point() else value,
                    part,
                    f"{part!r} of {checkpoint}",
                )


def require_sensible_colours(image_processor: Any, checkpoint: Path) -> None:
    """Raise MirError for settings with which a processor runs and makes noise of every picture."""

    def numbers(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    checks = {
        "image_mean": lambda value: all(is_number(one) for one in numbers(value)),
        "image_std": lambda value: all(is_number(one) and 0 < one < _LARGEST_STD for one in numbers(value)),
        "rescale_factor": lambda value: is_number(value) and 0 < value <= 1,
        "resample": lambda value: isinstance(value, int) and not isinstance(value, bool),
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), lambda value: isinstance(value, bool)),
    }
    for name, is_sensible in checks.items():
        value = getattr(image_processor, name, None)
        if value is not None and not is_sensible(value):
            raise MirError(
                f"the image processor of {checkpoint} has {name} = {value!r}, which is not possible. Copy "
                "preprocessor_config.json or processor_config.json from the base checkpoint."
            )


def _require_sensible_norms(checkpoint: Path, config: Mapping[str, Any]) -> None:
    for name, value in _fields(config):
        if name.endswith("norm_eps") and value is not None and not is_norm_epsilon(value):
            raise MirError(
                f"{checkpoint / 'config.json'} has {name} = {value!r}, expected a number such as 1e-06. Copy the "
                "checkpoint's own config.json."
            )


def _require_possible_rotation(checkpoint: Path, config: Mapping[str, Any]) -> None:
    for part in (config, *(value for _, value in _fields(config) if isinstance(value, Mapping))):
        if wrong := impossible_rotation(part):
            raise MirError(
                f"{checkpoint / 'config.json'} has {wrong[0]} = {wrong[1]!r}, expected a positive number. Copy the "
                "checkpoint's own config.json."
            )


def _refuse_kernels(checkpoint: Path, config: Mapping[str, Any]) -> None:
    for name, value in _fields(config):
        if name.endswith("attn_implementation") and "/" in str(value):
            raise MirError(
                f"{checkpoint / 'config.json'} has {name} = {value!r}, which is code to be downloaded from the hub. "
                "Remove that field, or allow it with --trust-remote-code."
            )


def _require_floats(weights: Mapping[str, StoredTensor]) -> None:
    for key, weight in weights.items():
        if key.endswith(".weight") and not weight.dtype.is_floating_point:
            raise MirError(
                f"{weight.origin} is stored as {dtype_name(weight.dtype)}, not as floating-point numbers, and "
                "config.json has no quantization_config that says what they mean. Use the checkpoint they were made "
                "from."
            )


def _require_described_size(checkpoint: Path, config: Mapping[str, Any], weights: Mapping[str, StoredTensor]) -> None:
    path = checkpoint / "config.json"
    for name, value in _fields(config):
        if name == "num_hidden_layers" and isinstance(value, int) and value > len(weights):
            raise MirError(
                f"{path} says {name} = {value}, but the weights files hold {len(weights)} tensors in all. Copy the "
                "checkpoint's own config.json."
            )
    described = skeleton(checkpoint)
    n_described = sum(parameter.numel() for parameter in described.parameters())
    n_stored = sum(math.prod(weight.shape) for weight in weights.values())
    if n_described > _MOST_PARAMETERS_PER_STORED * n_stored:
        raise MirError(
            f"{path} describes a model of {n_described:,} parameters, but the weights files hold {n_stored:,}: the "
            "rest would be random numbers. A part such as text_config or vision_config is missing or damaged; copy "
            "the checkpoint's own config.json."
        )


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values at every depth."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from _fields(value)
