"""Which family a checkpoint belongs to, from its config.json alone. Imports neither torch nor a family's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.hub import find_folder, folder_of_base
from mir_plugin.model_adapters.weights.left_by_trainers import ADAPTER_CONFIG, remedy_for
from mir_plugin.model_adapters.weights.stored import has_checkpoint_weights, read_json

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint's folder with its config, read once for recognition, inspection and loading.

    Attributes:
        path: of the folder.
        config: the content of its config.json, read-only.
        base: the folder named by ``--base``, or the one that lent its config.json.
        config_from: the folder whose config.json it is.
    """

    path: Path
    config: Mapping[str, Any]
    base: Path | None = None
    config_from: Path | None = None

    @classmethod
    def read(cls, path: Path, base: Path | None = None) -> CheckpointFolder:
        """The folder at ``path``.

        Args:
            base: whose config.json is used where the folder has none: an adapter's, or accelerate's state. By default
                that is the folder which adapter_config.json names, if it is on this machine.
        Raises:
            MirError: if there is no config.json, or one that cannot be read.
        """
        named = None if base is None else find_folder(str(base), (), part="base", option="--base")
        if not path.is_dir() or (path / CONFIG_NAME).is_file():
            return cls(path, MappingProxyType(read_json(path / CONFIG_NAME)), named, path)
        is_adapter = (path / ADAPTER_CONFIG).is_file()
        of_adapter = folder_of_base(path) if is_adapter and named is None else named
        if isinstance(of_adapter, Path) and (is_adapter or has_checkpoint_weights(path)):
            config = read_json(of_adapter / CONFIG_NAME)
            return cls(path, MappingProxyType(config), of_adapter, of_adapter)
        raise MirError(_why_no_checkpoint(path, of_adapter))

    @classmethod
    def find(cls, name: Path, base: Path | None = None) -> CheckpointFolder:
        """The folder of that name, or the local copy of the hub repository of that name, fetched if need be.

        Args:
            base: as for ``read``.
        Raises:
            MirError: if there is no such folder and the hub does not provide it.
        """
        if name.is_dir():
            return cls.read(name, base)
        from mir_plugin.model_adapters.weights.hub import hub_folder

        downloaded = hub_folder(str(name))
        if isinstance(downloaded, str):
            raise MirError(f"no checkpoint folder at {name} ({downloaded}). Check the path, or download it.")
        return cls.read(downloaded, base)

    @property
    def config_path(self) -> Path:
        """Of config.json, for messages."""
        return (self.config_from or self.path) / CONFIG_NAME


def _why_no_checkpoint(path: Path, base: Path | str | None) -> str:
    """What a folder without config.json is, and what to do, for a message."""
    lacks = f"{path} is not a checkpoint folder: it holds no {CONFIG_NAME}."
    if isinstance(base, str):
        return (
            f"{lacks} It is a PEFT adapter of {base!r}, which is not on this machine. For a Hugging Face model, name "
            "the folder of its base with --base. For LLaVA's own LoRA, measure the run's folder: config.json and "
            f"non_lora_trainables.bin (the projector) are written at the end. {remedy_for(path) or ''}".rstrip()
        )
    if remedy := remedy_for(path):
        return f"{lacks} {remedy}"
    if has_checkpoint_weights(path):
        return f"{lacks} Its weights may be the base's: name the folder whose {CONFIG_NAME} describes them with --base."
    inside = sorted(child.name for child in path.iterdir() if (child / CONFIG_NAME).is_file())
    if inside:
        return f"{lacks} Its folder {inside[0]} holds one: name that, or measure all inside with `mir sweep`."
    return lacks


def is_mini_gemini(folder: CheckpointFolder) -> bool:
    """By model_type, under its name of either period, or by a second vision tower."""
    kind = str(folder.config.get("model_type"))
    return kind.startswith(("mgm", "mini_gemini")) or "mm_vision_tower_aux" in folder.config


def is_sharegpt4v(folder: CheckpointFolder) -> bool:
    """By the model_type or the architecture that ShareGPT4V's code writes."""
    architectures = folder.config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return folder.config.get("model_type") == "share4v" or "Share4VLlamaForCausalLM" in named


def is_llava(folder: CheckpointFolder) -> bool:
    """By LLaVA's ``mm_vision_tower``; families built on LLaVA have it too, and come before it in the table."""
    return "mm_vision_tower" in folder.config


def is_huggingface(folder: CheckpointFolder) -> bool:
    """Whether transformers, or code in the folder, maps its config to an image-text-to-text model.

    Folders in the original LLaVA format are not: they name a vision tower (``mm_vision_tower``), and some of them call
    themselves ``llava``. Imports transformers, and with it torch, where the config alone does not tell.
    """
    if is_llava(folder):
        return False
    if brings_code(folder.config):
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return str(folder.config.get("model_type")) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def brings_code(config: Mapping[str, Any]) -> bool:
    """Whether the model is Python code in the checkpoint's own folder."""
    auto_map = config.get("auto_map")
    return isinstance(auto_map, dict) and "AutoModelForImageTextToText" in auto_map
