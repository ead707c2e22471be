"""CLIP vision towers, as far as config and headers tell: architecture, use, and where the weights are.

Imports no torch; ``vision_tower`` builds what is described here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.key_rules import TOWER_FOLDER_RULES
from mir_plugin.model_adapters.weights.key_rules import rename
from mir_plugin.model_adapters.weights.stored import StoredTensor, Weight, open_checkpoint_weights, read_json

# Of transformers' CLIPVisionConfig: a saved config leaves out what equals its default.
CLIP_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


@dataclass(frozen=True)
class TowerConfig:
    """A CLIP tower's architecture, and what LLaVA's config says about using it.

    Attributes:
        path: of the tower's config.json.
        architecture: of the vision model, as that file has it.
        select_layer: which hidden state is used; -2 is the last but one.
        select_feature: "patch" drops the class token, "cls_patch" keeps it.
    """

    path: Path
    architecture: Mapping[str, Any]
    select_layer: int
    select_feature: str

    @property
    def n_features(self) -> int:
        """Feature rows of one image."""
        return self.patches_per_side**2 + (self.select_feature == "cls_patch")

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return cast("int", self.architecture["hidden_size"])

    @property
    def n_layers(self) -> int:
        """Transformer layers."""
        return cast("int", self.architecture["num_hidden_layers"])

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return cast("int", self.architecture["image_size"])

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // cast("int", self.architecture["patch_size"])

    def as_json(self) -> dict[str, Any]:
        """Architecture and use as plain values: equal where two towers of equal weights compute the same."""
        use = {"select_layer": self.select_layer, "select_feature": self.select_feature}
        return {**use, "clip": dict(self.architecture)}


def open_tower_config(folder: Path, llava_config: Mapping[str, Any], weights: Mapping[str, Weight]) -> TowerConfig:
    """Architecture from the tower's folder, use from the checkpoint's config.

    Args:
        weights: of the whole model, the tower's named ``vision_tower.encoder.*``.
    Raises:
        MirError: if the folder's model is not a CLIP model or not the one whose weights these are, or the config asks
            for a layer or feature there is not.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise MirError(
            f"the vision tower in {folder} has model_type {kind!r}, expected 'clip' or 'clip_vision_model'. "
            f"Name a CLIP tower with --vision-tower."
        )
    tower = TowerConfig(
        path,
        _architecture(path, config),
        llava_config.get("mm_vision_select_layer", -2),
        llava_config.get("mm_vision_select_feature", "patch"),
    )
    _require_sizes_of_weights(tower, weights)
    if not isinstance(tower.select_layer, int):
        raise MirError(f"config.json has mm_vision_select_layer = {tower.select_layer!r}, expected a layer's number.")
    if not -tower.n_layers - 1 <= tower.select_layer <= tower.n_layers:
        raise MirError(
            f"mm_vision_select_layer is {tower.select_layer}, but the vision tower in {folder} has {tower.n_layers} "
            "layers. Check config.json, or name another tower with --vision-tower."
        )
    if tower.select_feature not in ("patch", "cls_patch"):
        raise MirError(
            f"mm_vision_select_feature is {tower.select_feature!r}, expected 'patch' or 'cls_patch'. Correct "
            "config.json."
        )
    return tower


def _architecture(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the vision model, sizes included that are not stated because they are transformers' defaults."""
    if config.get("model_type") == "clip":
        if not isinstance(config.get("vision_config"), dict):
            raise MirError(
                f"{path} describes a whole CLIP model without its vision_config. Copy the tower's own config."
            )
        config = config["vision_config"]
    for name in CLIP_DEFAULTS:
        value = config.get(name, CLIP_DEFAULTS[name])
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MirError(f"{path} has {name} = {value!r}, expected a positive whole number. Copy its own config.")
    return {**CLIP_DEFAULTS, **config}


def _require_sizes_of_weights(tower: TowerConfig, weights: Mapping[str, Weight]) -> None:
    """Before the tower is built: one of a billion layers, or for pictures of 10^6 pixels a side, takes all memory."""
    layers = {name.split(".")[4] for name in weights if name.startswith("vision_tower.encoder.encoder.layers.")}
    described = {"num_hidden_layers": tower.n_layers}
    stored = {"num_hidden_layers": len(layers)}
    positions = weights.get("vision_tower.encoder.embeddings.position_embedding.weight")
    if positions is not None:
        described |= {"hidden_size": tower.hidden_size, "image_size": tower.patches_per_side**2 + 1}
        stored |= {"hidden_size": positions.shape[1], "image_size": positions.shape[0]}
    for name, size in stored.items():
        if size and described[name] != size:
            meaning = f", so {described[name]} position embeddings," if name == "image_size" else ","
            raise MirError(
                f"{tower.path} says {name} = {tower.architecture[name]}{meaning} but the tower's weights have {size}. "
                "Name the tower that the weights belong to with --vision-tower, or copy the weights again."
            )


def open_tower_weights(folder: Path) -> dict[str, StoredTensor]:
    """Weights of a tower's folder under the names of ``ClipTower``."""
    weights = rename(open_checkpoint_weights(folder), TOWER_FOLDER_RULES, family="CLIP vision tower")
    return {f"encoder.{name}": weight for name, weight in weights.items()}
