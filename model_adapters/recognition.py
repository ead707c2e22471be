"""Which family a checkpoint belongs to, from its config.json alone. Imports neither torch nor a family's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import read_json

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint's folder with its config, read once for recognition, inspection and loading.

    Attributes:
        path: of the folder.
        config: the content of its config.json, read-only.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> CheckpointFolder:
        """The folder at ``path``. Raises MirError if it holds no config.json, or one that cannot be read."""
        if path.is_dir() and not (path / CONFIG_NAME).is_file():
            raise MirError(f"{path} is not a checkpoint folder: it holds no {CONFIG_NAME}.")
        return cls(path, MappingProxyType(read_json(path / CONFIG_NAME)))

    @classmethod
    def find(cls, name: Path) -> CheckpointFolder:
        """The folder of that name, or the local copy of the hub repository of that name, fetched if need be.

        Raises:
            MirError: if there is no such folder and the hub does not provide it.
        """
        if name.is_dir():
            return cls.read(name)
        from mir_plugin.model_adapters.weights.hub import hub_folder

        downloaded = hub_folder(str(name))
        if isinstance(downloaded, str):
            raise MirError(f"no checkpoint folder at {name} ({downloaded}). Check the path, or download it.")
        return cls.read(downloaded)

    @property
    def config_path(self) -> Path:
        """Of config.json, for messages."""
        return self.path / CONFIG_NAME


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
