"""LoRA adapters as PEFT stores them: the factors of each adapted module, still on disk. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import StoredTensor, open_weight_file, read_json

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


@dataclass(frozen=True)
class LoraPair:
    """The two factors for one linear layer: ``down`` (A) is (r, inputs), ``up`` (B) is (outputs, r)."""

    down: StoredTensor
    up: StoredTensor
    scale: float


def open_lora(folder: Path) -> dict[str, LoraPair]:
    """The LoRA pairs of a checkpoint folder, by name of the adapted module ("model.layers.0.mlp.up_proj").

    Raises:
        MirError: if a file is missing, the adapter is another method than plain LoRA, or a pair is incomplete.
    """
    config = read_json(folder / "adapter_config.json")
    _refuse_other_methods(config, folder)
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise MirError(f"{folder} holds adapter_config.json but none of {', '.join(ADAPTER_FILES)}. Copy it there.")
    sides: dict[str, dict[str, StoredTensor]] = {}
    for key, weight in open_weight_file(path).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise MirError(
                f"{weight.origin} is not a LoRA factor; expected a name like base_model.model.*.lora_A.weight."
            )
        sides.setdefault(match["module"], {})[match["side"]] = weight
    return {module: _pair(module, pair, config, path) for module, pair in sides.items()}


def require_all_targets(folder: Path, pairs: Mapping[str, LoraPair], base_names: Iterable[str]) -> None:
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
    modules = [name.removesuffix(".weight") for name in base_names if name.endswith(".weight") and ".layers." in name]
    if not pairs.keys() <= set(modules):
        return  # the adapter of another base, which is reported when they are merged
    missing = [module for module in modules if module.rpartition(".")[2] in targets and module not in pairs]
    if missing:
        path = next(folder / name for name in ADAPTER_FILES if (folder / name).is_file())
        raise MirError(
            f"{path} has no factors for {len(missing)} of the modules that target_modules of adapter_config.json "
            f"names, the first {missing[0]!r}. The adapter is incomplete: copy it again."
        )


def _pair(module: str, sides: Mapping[str, StoredTensor], config: Mapping[str, Any], path: Path) -> LoraPair:
    if sides.keys() != {"A", "B"}:
        (present,) = sides
        raise MirError(f"{path} holds lora_{present} of {module!r} without its partner. Copy the adapter again.")
    down, up = sides["A"], sides["B"]
    rank = _pattern(config, "rank_pattern", module, int(config["r"]))
    alpha = _pattern(config, "alpha_pattern", module, float(config["lora_alpha"]))
    if not (len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1] == rank):
        raise MirError(
            f"{down.origin} and {up.origin} have shapes {list(down.shape)} and {list(up.shape)}, "
            f"expected [{rank}, inputs] and [outputs, {rank}] (rank in adapter_config.json)."
        )
    return LoraPair(down, up, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(config: Mapping[str, Any], name: str, module: str, default: float) -> float:
    patterns = config.get(name) or {}
    try:
        for pattern, value in patterns.items():
            if re.search(rf"(^|\.){pattern}$", module):
                return float(value)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise MirError(
            f"adapter_config.json has {name} = {patterns!r}, expected patterns with a number each ({error})."
        ) from error
    return default


def _refuse_other_methods(config: Mapping[str, Any], folder: Path) -> None:
    refused = {
        "peft_type": config.get("peft_type", "LORA") != "LORA",
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
        "use_dora": bool(config.get("use_dora")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise MirError(
                f"{folder / 'adapter_config.json'} has {name} = {config[name]!r}; only plain LoRA is read. "
                f"Merge the adapter with PEFT and measure the merged checkpoint."
            )
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise MirError(f"{folder / 'adapter_config.json'} has {name} = {value!r}, expected a positive number.")
