"""LoRA adapters as PEFT stores them: the factors of each adapted module, still on disk. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.peft_options import method_of, refuse_unsound
from mir_plugin.model_adapters.weights.stored import StoredTensor, open_weight_file, read_json

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(lora_(?P<side>[AB])(\.default)?\.weight"
    r"|(?P<more>lora_(magnitude_vector|diag)(\.default)?(\.weight)?))"
)
_REPLACED = re.compile(r"base_model\.model\.(?P<module>.+?)(\.base_layer)?\.(?P<kind>weight|bias)")
_OFTEN_SAVED_WHOLE = ("embed_tokens", "lm_head")  # PEFT saves resized embeddings without being asked


@dataclass(frozen=True)
class LoraPair:
    """The two factors for one linear layer: ``down`` (A) is (r, inputs), ``up`` (B) is (outputs, r).

    Attributes:
        alpha: ``scale`` is alpha / r, or alpha / √r for rank-stabilised LoRA.
        method: what else is done besides adding the product, by its name, "PiSSA"; None for plain LoRA.
        more: further tensors of the method, by their names in PEFT's layer.
        settings: the content of adapter_config.json.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float
    alpha: float = 0.0
    method: str | None = None
    more: Mapping[str, StoredTensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class LoraAdapter:
    """What an adapter does to a base: ``pairs`` by module, and ``replaced``, parameters stored whole, by their names.

    Names are those of the base: "model.layers.0.mlp.up_proj", "lm_head.weight".
    """

    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, StoredTensor]


def open_lora(folder: Path) -> LoraAdapter:
    """The adapter of a checkpoint folder.

    Raises:
        MirError: if a file is missing, the adapter's method or initialisation cannot be merged from base and adapter
            alone, or a pair is incomplete.
    """
    path, config = adapter_file(folder), read_json(folder / "adapter_config.json")
    refuse_unsound(config, folder / "adapter_config.json", native=True)
    _require_numbers(config, folder)
    sides: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for key, weight in open_weight_file(path).items():
        if match := _KEY.fullmatch(key):
            name = match["side"] or match["more"].partition(".")[0]
            sides.setdefault(match["module"], {})[name] = weight
        elif (whole := _REPLACED.fullmatch(key)) and _is_replaced(whole, config):
            replaced[f"{whole['module']}.{whole['kind']}"] = weight
        else:
            raise MirError(
                f"{weight.origin} is not a LoRA factor; expected a name like base_model.model.*.lora_A.weight. "
                "Merge the adapter with PEFT and measure the merged checkpoint."
            )
    method = method_of(config)
    for module in sides:
        if method and f"{module}.weight" in replaced:
            raise MirError(
                f"{replaced[f'{module}.weight'].origin} is stored whole and adapted too, by {method}. Merge the "
                "adapter with PEFT and measure the merged checkpoint."
            )
    pairs = {module: _pair(module, pair, config, path, method) for module, pair in sides.items()}
    return LoraAdapter(pairs, replaced)


def adapter_file(folder: Path) -> Path:
    """The file of an adapter's weights. Raises MirError if there is none."""
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise MirError(f"{folder} holds adapter_config.json but none of {', '.join(ADAPTER_FILES)}. Copy it there.")
    return path


def _is_replaced(key: re.Match[str], config: Mapping[str, Any]) -> bool:
    saved = config.get("modules_to_save") or ()
    if key["module"].endswith((*saved, *_OFTEN_SAVED_WHOLE)):  # PEFT takes them by the end of their names
        return True
    return key["kind"] == "bias" and config.get("bias", "none") != "none"


def require_all_targets(folder: Path, adapter: LoraAdapter, base_names: Iterable[str]) -> None:
    """Refuse an adapter that lacks modules which its config says were adapted: part of it was lost when it was saved.

    Args:
        base_names: parameters of the base LLM, "model.layers.0.mlp.up_proj.weight".
    Raises:
        MirError: naming the first of them.
    """
    config = read_json(folder / "adapter_config.json")
    targets = config.get("target_modules")
    # A string is a pattern of PEFT's; a choice of layers or exclusions changes what is expected.
    if not isinstance(targets, list) or any(config.get(name) for name in ("layers_to_transform", "exclude_modules")):
        return
    pairs = adapter.pairs
    modules = [name.removesuffix(".weight") for name in base_names if name.endswith(".weight") and ".layers." in name]
    if not pairs.keys() <= set(modules):
        return  # the adapter of another base, which is reported when they are merged
    whole = {name.removesuffix(".weight") for name in adapter.replaced}
    missing = [
        module
        for module in modules
        if module.rpartition(".")[2] in targets and module not in pairs and module not in whole
    ]
    if missing:
        raise MirError(
            f"{adapter_file(folder)} has no factors for {len(missing)} of the modules that target_modules of "
            f"adapter_config.json names, the first {missing[0]!r}. The adapter is incomplete: copy it again."
        )


def _pair(
    module: str, sides: Mapping[str, StoredTensor], config: Mapping[str, Any], path: Path, method: str | None
) -> LoraPair:
    if not {"A", "B"} <= sides.keys():
        present = next(iter(sides))
        raise MirError(f"{path} holds lora_{present} of {module!r} without its partner. Copy the adapter again.")
    down, up = sides["A"], sides["B"]
    more = {name: weight for name, weight in sides.items() if name not in ("A", "B")}
    if ("lora_magnitude_vector" in more) != bool(config.get("use_dora")):
        raise MirError(
            f"adapter_config.json has use_dora = {config.get('use_dora', False)}, but {path} says otherwise of "
            f"{module!r}. Copy config and weights of one adapter."
        )
    rank = _pattern(config, "rank_pattern", module, int(config["r"]))
    alpha = _pattern(config, "alpha_pattern", module, float(config["lora_alpha"]))
    if not (len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1] == rank):
        raise MirError(
            f"{down.origin} and {up.origin} have shapes {list(down.shape)} and {list(up.shape)}, "
            f"expected [{rank}, inputs] and [outputs, {rank}] (rank in adapter_config.json)."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(down, up, scale, alpha, method, more, config)


def _pattern(config: Mapping[str, Any], name: str, module: str, default: float) -> float:
    patterns = config.get(name) or {}
    try:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise MirError(
            f"adapter_config.json has {name} = {patterns!r}, expected patterns with a number each ({error})."
        ) from error
    return default


def _require_numbers(config: Mapping[str, Any], folder: Path) -> None:
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise MirError(f"{folder / 'adapter_config.json'} has {name} = {value!r}, expected a positive number.")
