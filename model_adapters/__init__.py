"""The checkpoint families that can be loaded, as a table. Each loader is imported on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.left_by_trainers import remedy_for

if TYPE_CHECKING:
    from mir_plugin.model_adapters.weights.shared_parts import SharedParts
    from mir_plugin.types import ModelAdapter


@dataclass(frozen=True)
class LoadOptions:
    """How to load a checkpoint; the same names as on the command line and in ``--model_args``.

    Attributes:
        base: folder that supplies what a checkpoint lacks: config.json and the base weights of an adapter; and the
            processor, instead of the checkpoint's own.
        base_llm: folder of the language model a projector-only or LoRA checkpoint was trained on; default ``base``.
        vision_tower: folder that overrides every other source of vision-tower weights.
        vision_tower_aux: the same for the second tower (Mini-Gemini).
        family: adapter name, or "module:ATTRIBUTE" of an ``AdapterSpec`` that is not an installed plugin; None
            recognises it from the checkpoint's files and config.
        dtype: "auto" takes the checkpoint's own; else "float32", "bfloat16" or "float16".
        device: torch device string; "auto" takes the accelerator if there is one.
        device_memory: bytes of device memory to stay within; decoder weights are streamed when they do not fit.
        merge_lora: fold LoRA weights into the base weights while loading.
        trust_remote_code: allow code from the checkpoint's folder to run.
        unpickle: let the readers of torch and DeepSpeed unpickle shards of a training, which may run code.
    """

    base: Path | None = None
    base_llm: Path | None = None
    vision_tower: Path | None = None
    vision_tower_aux: Path | None = None
    family: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_memory: int | None = None
    merge_lora: bool = True
    trust_remote_code: bool = False
    unpickle: bool = False


@dataclass(frozen=True)
class AdapterSpec:
    """One checkpoint family. Other packages add theirs by an entry point of the group ``mir_plugin.adapters``.

    ``loads``, ``recognises``, ``inspects`` and ``checks`` are of the form ``"module:function"`` and imported on first
    use. ``folder`` below has ``path`` and ``config``, the content of config.json.

    Attributes:
        name: what ``--family`` takes.
        summary: which checkpoints, in a line.
        loads: ``(folder: CheckpointFolder, options: LoadOptions) -> ModelAdapter``.
        recognises: ``(folder: CheckpointFolder) -> bool``, from files and config alone. The first family of the table
            that recognises a checkpoint loads it, so this should import nothing heavy.
        inspects: ``(folder: CheckpointFolder, options: LoadOptions) -> Mapping[str, str]``, what loading would use, as
            headings and texts; reads no weight, and should import nothing heavy.
        checks: None, or the same for what takes longer: goes through what ``loads`` and the first sample go through,
            all but the values of weights, and raises MirError as they would; further headings and texts.
        aliases: further names.
        shares: whether ``loads`` also takes ``shared=``, what the checkpoint loaded before it left behind.
    """

    name: str
    summary: str
    loads: str
    recognises: str
    inspects: str
    aliases: tuple[str, ...] = ()
    shares: bool = False
    checks: str | None = None


ADAPTERS: tuple[AdapterSpec, ...] = (
    AdapterSpec(
        name="mini-gemini",
        summary="Mini-Gemini / MGM: full and projector-only; two vision towers and patch-info mining",
        loads="mir_plugin.model_adapters.mini_gemini.loading:load",
        recognises="mir_plugin.model_adapters.recognition:is_mini_gemini",
        inspects="mir_plugin.model_adapters.mini_gemini.files:inspect",
        checks="mir_plugin.model_adapters.mini_gemini.loading:check",
        aliases=("mgm",),
        shares=True,
    ),
    AdapterSpec(
        name="sharegpt4v",
        summary="ShareGPT4V: full, pre-training (tuned upper vision tower) and projector-only",
        loads="mir_plugin.model_adapters.llava.loading:load_sharegpt4v",
        recognises="mir_plugin.model_adapters.recognition:is_sharegpt4v",
        inspects="mir_plugin.model_adapters.llava.inspection:inspect_sharegpt4v",
        checks="mir_plugin.model_adapters.llava.loading:check_sharegpt4v",
        aliases=("share4v",),
        shares=True,
    ),
    AdapterSpec(
        name="llava-1.5",
        summary="original LLaVA 1.5, 1.6 and OneVision: full, projector-only, LoRA; with or without MoCa",
        loads="mir_plugin.model_adapters.llava.loading:load",
        recognises="mir_plugin.model_adapters.recognition:is_llava",
        inspects="mir_plugin.model_adapters.llava.inspection:inspect",
        checks="mir_plugin.model_adapters.llava.loading:check",
        aliases=("llava",),
        shares=True,
    ),
    AdapterSpec(
        name="huggingface",
        summary="transformers LVLMs with image tokens in one decoder: AutoModelForImageTextToText and its processor",
        loads="mir_plugin.model_adapters.huggingface.adapter:load",
        recognises="mir_plugin.model_adapters.recognition:is_huggingface",
        inspects="mir_plugin.model_adapters.huggingface.inspection:inspect",
        checks="mir_plugin.model_adapters.huggingface.inspection:check",
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
        source = f"the adapter {point.name!r} of {point.dist.name if point.dist else 'an unknown package'}"
        spec = _spec_at(point.value, source)
        in_use = {name for one in (*plugins, *ADAPTERS) for name in (one.name, *one.aliases)}
        if taken := in_use & {spec.name, *spec.aliases}:
            raise MirError(f"{source} is called {taken.pop()!r}, which is in use. Rename or uninstall it.")
        plugins.append(spec)
    return (*plugins, *ADAPTERS)


def adapter_spec(name: str) -> AdapterSpec:
    """The table entry of a family name or alias, or the spec at "module:ATTRIBUTE".

    Raises:
        MirError: for an unknown name, listing the known ones, or for a module that cannot be imported.
    """
    if ":" in name:
        if not _PLACE.fullmatch(name):
            raise MirError(f"--family {name} is not of the form module:ATTRIBUTE, such as my_package.adapter:SPEC.")
        return _spec_at(name, f"--family {name}")
    for spec in known_adapters():
        if name in (spec.name, *spec.aliases):
            return spec
    raise MirError(
        f"unknown adapter {name!r}; known: {_names()}. `mir adapters` describes them; name your own as "
        "module:ATTRIBUTE."
    )


def _spec_at(place: str, source: str) -> AdapterSpec:
    try:
        spec = _import(place)
    except (ImportError, AttributeError) as error:
        raise MirError(
            f"{source} cannot be imported: {error}. Install the package, or put its folder on PYTHONPATH."
        ) from error
    if not isinstance(spec, AdapterSpec):
        raise MirError(f"{source} is {type(spec).__name__!r}; expected a mir_plugin.model_adapters.AdapterSpec.")
    return spec


def _names() -> str:
    return ", ".join(spec.name for spec in known_adapters())


def recognise(folder: CheckpointFolder) -> AdapterSpec:
    """The family of a checkpoint, from its files and config; never from the folder's name.

    Raises:
        MirError: if no family recognises it.
    """
    for spec in known_adapters():
        if cast("Callable[[CheckpointFolder], bool]", _import(spec.recognises))(folder):
            return spec
    if folder.config_from not in (None, folder.path):
        raise MirError(
            f"{folder.path} has no config.json, and that of its base {folder.config_from} describes no vision-language "
            "model. LLaVA's LoRA gets its config.json and non_lora_trainables.bin (the projector) at the end of a "
            "training: measure the run's folder. For a Hugging Face model, name its base with --base."
        )
    if remedy := remedy_for(folder.path):
        raise MirError(f"{folder.path} belongs to no known family. {remedy}")
    raise MirError(
        f"{folder.path} belongs to no known family ({_names()}). Name one with --family to load it as that family; "
        "convert it to the Hugging Face format where transformers has its model, or write an adapter of your own "
        "(docs/how-to/own-model.md)."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and how to load it. Nothing is read before it is needed; config.json is read once.

    Attributes:
        name: a folder, or the name of a hub repository; results are filed under it.
        options: how to load it.
    """

    name: Path
    options: LoadOptions = field(default_factory=LoadOptions)

    @functools.cached_property
    def folder(self) -> CheckpointFolder:
        """The folder, fetched from the hub if it is not there. Raises MirError if there is none."""
        return CheckpointFolder.find(self.name, self.options.base)

    @functools.cached_property
    def spec(self) -> AdapterSpec:
        """The family named in the options, or the one that recognises the checkpoint. Raises MirError for none."""
        named = adapter_spec(self.options.family) if self.options.family else None
        folder = self.folder
        return named or recognise(folder)

    def load(self, shared: SharedParts | None = None) -> ModelAdapter:
        """Load the weights.

        Args:
            shared: takes over what equals the checkpoint loaded with it before, whose adapter must not be used any
                more.
        Raises:
            MirError: if parts are missing, damaged, or do not fit each other.
        """
        sharing = {"shared": shared} if self.spec.shares else {}
        return cast("ModelAdapter", _import(self.spec.loads)(self.folder, self.options, **sharing))

    def inspect(self) -> Mapping[str, str]:
        """What loading would use, as headings and texts, from configs and headers.

        Raises:
            MirError: for parts that are missing or do not belong together.
        """
        return self._told(self.spec.inspects)

    def check(self) -> Mapping[str, str]:
        """Go through what ``load`` and the first sample go through, without reading a weight; what only this shows.

        Raises:
            MirError: as they would.
        """
        return self._told(self.spec.checks) if self.spec.checks else {}

    def _told(self, target: str) -> Mapping[str, str]:
        tells = cast("Callable[..., Mapping[str, str]]", _import(target))
        try:
            return tells(self.folder, self.options)
        except MirError as error:
            raise MirError(
                f"{self.name} is a {self.spec.name} checkpoint, but cannot be loaded yet: {error}"
            ) from error


def open_checkpoint(name: Path, options: LoadOptions | None = None) -> Checkpoint:
    """Find and recognise a checkpoint, without loading it.

    Args:
        name: a folder, or the name of a hub repository.
    Raises:
        MirError: if there is no such checkpoint, or no family recognises it.
    """
    checkpoint = Checkpoint(name, options or LoadOptions())
    _ = checkpoint.spec
    return checkpoint


def load_adapter(
    checkpoint: Path, options: LoadOptions | None = None, *, shared: SharedParts | None = None
) -> ModelAdapter:
    """Load a checkpoint with the adapter that recognises it, or with the one named in ``options.family``.

    Args:
        checkpoint: a folder, or the name of a hub repository.
        shared: as for ``Checkpoint.load``.
    """
    return Checkpoint(checkpoint, options or LoadOptions()).load(shared)


def _import(target: str) -> Callable[..., object]:
    """The object at "module:attribute"; raises ImportError or AttributeError."""
    module, _, attribute = target.partition(":")
    return cast("Callable[..., object]", getattr(importlib.import_module(module), attribute))
