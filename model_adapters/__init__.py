"""The checkpoint families that can be loaded, as a table. Each loader is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from mir_plugin.types import ModelAdapter


@dataclass(frozen=True)
class LoadOptions:
    """How to load a checkpoint; the same names as on the command line and in ``--model_args``.

    Attributes:
        base_llm: folder of the language model a projector-only or LoRA checkpoint was trained on.
        vision_tower: folder that overrides every other source of vision-tower weights.
        vision_tower_aux: the same for the second tower (Mini-Gemini).
        family: adapter name; None recognises it from the checkpoint's files and config.
        dtype: "auto" takes the checkpoint's own; else "float32", "bfloat16" or "float16".
        device: torch device string; "auto" takes the accelerator if there is one.
        device_memory: bytes of device memory to stay within; decoder weights are streamed when they do not fit.
        merge_lora: fold LoRA weights into the base weights while loading.
        trust_remote_code: allow code from the checkpoint's folder to run.
    """

    base_llm: Path | None = None
    vision_tower: Path | None = None
    vision_tower_aux: Path | None = None
    family: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_memory: int | None = None
    merge_lora: bool = True
    trust_remote_code: bool = False


@dataclass(frozen=True)
class AdapterSpec:
    """One checkpoint family.

    ``loads`` is ``"module:function"`` with the signature ``(checkpoint: Path, options: LoadOptions) -> ModelAdapter``;
    ``recognises`` is ``"module:function"`` with the signature ``(checkpoint: Path) -> bool``, which reads config and
    key names only. The first entry of the table that recognises a checkpoint loads it.
    """

    name: str
    summary: str
    loads: str
    recognises: str
    aliases: tuple[str, ...] = ()


ADAPTERS: tuple[AdapterSpec, ...] = (
    AdapterSpec(
        name="mini-gemini",
        summary="Mini-Gemini / MGM: full and projector-only; two vision towers and patch-info mining",
        loads="mir_plugin.model_adapters.mini_gemini:load",
        recognises="mir_plugin.model_adapters.mini_gemini:recognises",
        aliases=("mgm",),
    ),
    AdapterSpec(
        name="sharegpt4v",
        summary="ShareGPT4V: full, pre-training (tuned upper vision tower) and projector-only",
        loads="mir_plugin.model_adapters.sharegpt4v:load",
        recognises="mir_plugin.model_adapters.sharegpt4v:recognises",
        aliases=("share4v",),
    ),
    AdapterSpec(
        name="llava-1.5",
        summary="original LLaVA-1.5: full, projector-only, LoRA; with or without MoCa",
        loads="mir_plugin.model_adapters.llava:load",
        recognises="mir_plugin.model_adapters.llava:recognises",
        aliases=("llava",),
    ),
    AdapterSpec(
        name="huggingface",
        summary="any transformers LVLM: AutoModelForImageTextToText and its processor",
        loads="mir_plugin.model_adapters.huggingface:load",
        recognises="mir_plugin.model_adapters.huggingface:recognises",
        aliases=("hf",),
    ),
)


def adapter_spec(name: str) -> AdapterSpec:
    """The table entry of a family name or alias. Raises MirError listing the known names."""
    for spec in ADAPTERS:
        if name in (spec.name, *spec.aliases):
            return spec
    known = ", ".join(spec.name for spec in ADAPTERS)
    raise MirError(f"unknown adapter {name!r}; known: {known}. `mir adapters` describes them.")


def recognise(checkpoint: Path) -> AdapterSpec:
    """The family of a checkpoint, from its files and config; never from its folder's name."""
    if not checkpoint.is_dir():
        raise MirError(f"no checkpoint folder at {checkpoint}. Check the path, or download the checkpoint first.")
    if not (checkpoint / "config.json").is_file():
        raise MirError(f"{checkpoint} holds no config.json, so it is no checkpoint folder.")
    for spec in ADAPTERS:
        if cast("Callable[[Path], bool]", _named(spec.recognises))(checkpoint):
            return spec
    known = ", ".join(spec.name for spec in ADAPTERS)
    raise MirError(f"{checkpoint} belongs to no known family ({known}). Name one with --family to try it anyway.")


def load_adapter(checkpoint: Path, options: LoadOptions | None = None) -> ModelAdapter:
    """Load a checkpoint with the adapter that recognises it, or with the one named in ``options.family``."""
    options = options or LoadOptions()
    spec = adapter_spec(options.family) if options.family else recognise(checkpoint)
    return cast("ModelAdapter", _named(spec.loads)(checkpoint, options))


def _named(target: str) -> Callable[..., object]:
    module, _, attribute = target.partition(":")
    return cast("Callable[..., object]", getattr(importlib.import_module(module), attribute))
