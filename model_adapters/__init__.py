"""The checkpoint families that can be loaded, as a table. Each loader is imported on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from mir_plugin.model_adapters.weights.shared_parts import SharedParts
    from mir_plugin.types import ModelAdapter


@dataclass(frozen=True)
class LoadOptions:
    """How to load a checkpoint; the same names as on the command line and in ``--model_args``.

    Attributes:
        base_llm: folder of the language model a projector-only or LoRA checkpoint was trained on.
        vision_tower: folder that overrides every other source of vision-tower weights.
        vision_tower_aux: the same for the second tower (Mini-Gemini).
        family: adapter name, or "module:ATTRIBUTE" of an ``AdapterSpec`` that is no installed plugin; None recognises
            it from the checkpoint's files and config.
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
    """One checkpoint family. Other packages add theirs by an entry point of the group ``mir_plugin.adapters``.

    ``loads`` is ``"module:function"`` with the signature ``(checkpoint: Path, options: LoadOptions) -> ModelAdapter``;
    ``recognises`` is ``"module:function"`` with the signature ``(checkpoint: Path) -> bool``, which reads config and
    key names only. The first entry of the table that recognises a checkpoint loads it.
    A loader that ``shares`` also takes ``shared=``, what the checkpoint loaded before it left behind.
    ``inspects`` is ``"module:function"`` with the signature ``(checkpoint: Path, options: LoadOptions) ->
    Mapping[str, str]``: what loading would use, found out without reading a weight, as headings and texts.
    """

    name: str
    summary: str
    loads: str
    recognises: str
    inspects: str
    aliases: tuple[str, ...] = ()
    shares: bool = False


ADAPTERS: tuple[AdapterSpec, ...] = (
    AdapterSpec(
        name="mini-gemini",
        summary="Mini-Gemini / MGM: full and projector-only; two vision towers and patch-info mining",
        loads="mir_plugin.model_adapters.mini_gemini.loading:load",
        recognises="mir_plugin.model_adapters.mini_gemini.loading:recognises",
        inspects="mir_plugin.model_adapters.mini_gemini.loading:inspect",
        aliases=("mgm",),
        shares=True,
    ),
    AdapterSpec(
        name="sharegpt4v",
        summary="ShareGPT4V: full, pre-training (tuned upper vision tower) and projector-only",
        loads="mir_plugin.model_adapters.llava.sharegpt4v:load",
        recognises="mir_plugin.model_adapters.llava.sharegpt4v:recognises",
        inspects="mir_plugin.model_adapters.llava.sharegpt4v:inspect",
        aliases=("share4v",),
        shares=True,
    ),
    AdapterSpec(
        name="llava-1.5",
        summary="original LLaVA-1.5: full, projector-only, LoRA; with or without MoCa",
        loads="mir_plugin.model_adapters.llava.loading:load",
        recognises="mir_plugin.model_adapters.llava.loading:recognises",
        inspects="mir_plugin.model_adapters.llava.loading:inspect",
        aliases=("llava",),
        shares=True,
    ),
    AdapterSpec(
        name="huggingface",
        summary="transformers LVLMs with image tokens in one decoder: AutoModelForImageTextToText and its processor",
        loads="mir_plugin.model_adapters.huggingface.adapter:load",
        recognises="mir_plugin.model_adapters.huggingface.checkpoint:recognises",
        inspects="mir_plugin.model_adapters.huggingface.checkpoint:inspect",
        aliases=("hf",),
    ),
)


ENTRY_POINTS = "mir_plugin.adapters"
_PLACE = re.compile(r"\w+(\.\w+)*:\w+")  # module:ATTRIBUTE


@functools.cache
def known_adapters() -> tuple[AdapterSpec, ...]:
    """Those of installed plugins, then our own: a plugin is asked first whether it recognises a checkpoint.

    Raises:
        MirError: for a plugin that cannot be imported or takes a name that is in use.
    """
    plugins: list[AdapterSpec] = []
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS)):
        what = f"the adapter {point.name!r} of {point.dist.name if point.dist else 'an unknown package'}"
        spec = _spec_at(point.value, what)
        in_use = {name for one in (*plugins, *ADAPTERS) for name in (one.name, *one.aliases)}
        if taken := in_use & {spec.name, *spec.aliases}:
            raise MirError(f"{what} is called {taken.pop()!r}, which is in use. Rename or uninstall it.")
        plugins.append(spec)
    return (*plugins, *ADAPTERS)


def adapter_spec(name: str) -> AdapterSpec:
    """The table entry of a family name or alias, or the spec at "module:ATTRIBUTE".

    Raises:
        MirError: for an unknown name, listing the known ones, or for a module that cannot be imported.
    """
    if ":" in name:
        if not _PLACE.fullmatch(name):
            raise MirError(f"--family {name} is no module:ATTRIBUTE, as in my_package.adapter:SPEC.")
        return _spec_at(name, f"--family {name}")
    for spec in known_adapters():
        if name in (spec.name, *spec.aliases):
            return spec
    raise MirError(
        f"unknown adapter {name!r}; known: {_names()}. `mir adapters` describes them; one of your own is named as "
        "module:ATTRIBUTE."
    )


def _spec_at(place: str, what: str) -> AdapterSpec:
    try:
        spec = _named(place)
    except (ImportError, AttributeError) as error:
        raise MirError(
            f"{what} cannot be imported: {error}. Install the package, or put its folder on PYTHONPATH."
        ) from error
    if not isinstance(spec, AdapterSpec):
        raise MirError(f"{what} is {type(spec).__name__!r}; expected a mir_plugin.model_adapters.AdapterSpec.")
    return spec


def _names() -> str:
    return ", ".join(spec.name for spec in known_adapters())


def checkpoint_folder(checkpoint: Path) -> Path:
    """The folder of a checkpoint: itself, or the local copy of a hub repository of that name, fetched if need be.

    Raises:
        MirError: if there is no such folder and the hub does not give it.
    """
    if checkpoint.is_dir():
        if not (checkpoint / "config.json").is_file():
            raise MirError(f"{checkpoint} holds no config.json, so it is no checkpoint folder.")
        return checkpoint
    from mir_plugin.model_adapters.weights.hub import hub_folder

    found = hub_folder(str(checkpoint))
    if isinstance(found, str):
        raise MirError(f"no checkpoint folder at {checkpoint} ({found}). Check the path, or download the checkpoint.")
    return found


def recognise(checkpoint: Path) -> AdapterSpec:
    """The family of a checkpoint folder, from its files and config; never from the folder's name."""
    for spec in known_adapters():
        if cast("Callable[[Path], bool]", _named(spec.recognises))(checkpoint):
            return spec
    raise MirError(f"{checkpoint} belongs to no known family ({_names()}). Name one with --family to try it anyway.")


def checkpoint_spec(checkpoint: Path, family: str | None = None) -> tuple[Path, AdapterSpec]:
    """The folder of a checkpoint and the adapter that loads it: the named family's, or the one that recognises it."""
    spec = adapter_spec(family) if family else None
    folder = checkpoint_folder(checkpoint)
    return folder, spec or recognise(folder)


def load_adapter(
    checkpoint: Path, options: LoadOptions | None = None, *, shared: SharedParts | None = None
) -> ModelAdapter:
    """Load a checkpoint with the adapter that recognises it, or with the one named in ``options.family``.

    Args:
        checkpoint: a folder, or the name of a hub repository.
        shared: takes over what equals the checkpoint loaded with it before, whose adapter must not be used any more.
    """
    options = options or LoadOptions()
    folder, spec = checkpoint_spec(checkpoint, options.family)
    sharing = {"shared": shared} if spec.shares else {}
    return cast("ModelAdapter", _named(spec.loads)(folder, options, **sharing))


def inspect_checkpoint(checkpoint: Path, options: LoadOptions) -> tuple[AdapterSpec, Mapping[str, str]]:
    """The family that would load a checkpoint, and what it would use; no weight is read.

    Raises:
        MirError: as loading would, for parts that are missing or do not belong together.
    """
    folder, spec = checkpoint_spec(checkpoint, options.family)
    try:
        return spec, cast("Callable[..., Mapping[str, str]]", _named(spec.inspects))(folder, options)
    except MirError as error:
        raise MirError(f"{checkpoint} is a {spec.name} checkpoint, but cannot be loaded yet: {error}") from error


def _named(target: str) -> Callable[..., object]:
    """What stands at "module:attribute"; raises ImportError or AttributeError."""
    module, _, attribute = target.partition(":")
    return cast("Callable[..., object]", getattr(importlib.import_module(module), attribute))
