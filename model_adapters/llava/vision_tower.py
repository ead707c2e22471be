"""CLIP vision towers: where their weights come from, and the patch features a projector receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.key_rules import KeyRule, rename
from mir_plugin.model_adapters.weights.stored import Weight, open_checkpoint_weights, read_json

TOWER_FOLDER_RULES = (
    KeyRule("vision_model.embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("vision_model.", ""),
    KeyRule("text_model.", None, "text half of a whole CLIP model"),
    KeyRule("text_projection.", None, "text half of a whole CLIP model"),
    KeyRule("visual_projection.", None, "joint space of a whole CLIP model"),
    KeyRule("logit_scale", None, "joint space of a whole CLIP model"),
    # transformers 5 saves a vision model without the prefix.
    KeyRule("embeddings.position_ids", None, "counts up from 0; computed"),
    KeyRule("embeddings.", "embeddings."),
    KeyRule("pre_layrnorm.", "pre_layrnorm."),
    KeyRule("encoder.", "encoder."),
    KeyRule("post_layernorm.", "post_layernorm."),
)
"""Keys in the folder of a CLIP vision model, or of a whole CLIP model, onto the inside of a ``ClipTower.encoder``."""


@dataclass(frozen=True)
class TowerConfig:
    """What LLaVA's config says about using a tower.

    Attributes:
        select_layer: which hidden state is used; -2 is the last but one.
        select_feature: "patch" drops the class token, "cls_patch" keeps it.
    """

    clip: CLIPVisionConfig
    select_layer: int
    select_feature: str

    @property
    def n_features(self) -> int:
        """Feature rows of one image."""
        return self.patches_per_side**2 + (self.select_feature == "cls_patch")

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return cast("int", self.clip.image_size)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // cast("int", self.clip.patch_size)

    def as_json(self) -> dict[str, Any]:
        """Architecture and use as plain values: equal where two towers of equal weights compute the same."""
        use = {"select_layer": self.select_layer, "select_feature": self.select_feature}
        return {**use, "clip": self.clip.to_dict()}


def open_tower_config(folder: Path, llava_config: Mapping[str, Any], weights: Mapping[str, Weight]) -> TowerConfig:
    """Architecture from the tower's folder, use from the checkpoint's config.

    Args:
        weights: of the whole model, the tower's named ``vision_tower.encoder.*``.
    Raises:
        MirError: if the folder's model is no CLIP model, is not the one whose weights these are, or the config asks for
            a layer or feature there is not.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise MirError(
            f"the vision tower in {folder} has model_type {kind!r}, expected 'clip' or 'clip_vision_model'. "
            f"Name a CLIP tower with --vision-tower."
        )
    clip = _clip_config(folder / "config.json", config)
    _require_sizes_of_weights(folder / "config.json", clip, weights)
    select_layer = llava_config.get("mm_vision_select_layer", -2)
    if not isinstance(select_layer, int):
        raise MirError(f"config.json has mm_vision_select_layer = {select_layer!r}, expected a layer's number.")
    select_feature = llava_config.get("mm_vision_select_feature", "patch")
    if not -clip.num_hidden_layers - 1 <= select_layer <= clip.num_hidden_layers:
        raise MirError(
            f"mm_vision_select_layer is {select_layer}, but the vision tower in {folder} has "
            f"{clip.num_hidden_layers} layers. Check config.json, or name another tower with --vision-tower."
        )
    if select_feature not in ("patch", "cls_patch"):
        raise MirError(
            f"mm_vision_select_feature is {select_feature!r}, expected 'patch' or 'cls_patch'. Correct config.json."
        )
    return TowerConfig(clip, select_layer, select_feature)


def _clip_config(path: Path, config: Mapping[str, Any]) -> CLIPVisionConfig:
    if config.get("model_type") == "clip":
        if not isinstance(config.get("vision_config"), dict):
            raise MirError(
                f"{path} describes a whole CLIP model without its vision_config. Copy the tower's own config."
            )
        config = config["vision_config"]
    try:
        clip = CLIPVisionConfig.from_dict(dict(config))
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MirError(f"{path} describes no CLIP vision tower: {reason}. Copy the tower's own config.") from error
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
        value = getattr(clip, name)
        if not isinstance(value, int) or value < 1:
            raise MirError(f"{path} has {name} = {value!r}, expected a whole number from 1 on. Copy its own config.")
    return clip


def _require_sizes_of_weights(path: Path, clip: CLIPVisionConfig, weights: Mapping[str, Weight]) -> None:
    """Before the tower is built: one of a billion layers, or for pictures of 10^6 pixels a side, takes all memory."""
    layers = {name.split(".")[4] for name in weights if name.startswith("vision_tower.encoder.encoder.layers.")}
    described = {"num_hidden_layers": clip.num_hidden_layers}
    stored = {"num_hidden_layers": len(layers)}
    positions = weights.get("vision_tower.encoder.embeddings.position_embedding.weight")
    if positions is not None:
        side = cast("int", clip.image_size) // cast("int", clip.patch_size)
        described |= {"hidden_size": clip.hidden_size, "image_size": side**2 + 1}
        stored |= {"hidden_size": positions.shape[1], "image_size": positions.shape[0]}
    for name, size in stored.items():
        if size and described[name] != size:
            meaning = f", so {described[name]} position embeddings," if name == "image_size" else ","
            raise MirError(
                f"{path} says {name} = {getattr(clip, name)}{meaning} but the tower's weights have {size}. Name the "
                "tower that the weights belong to with --vision-tower, or copy the weights again."
            )


def open_tower_weights(folder: Path) -> dict[str, Weight]:
    """Weights of a tower's folder under the names of ``ClipTower``."""
    weights = rename(open_checkpoint_weights(folder), TOWER_FOLDER_RULES, family="CLIP vision tower")
    return {f"encoder.{name}": weight for name, weight in weights.items()}


class ClipTower(nn.Module):
    """A CLIP vision transformer that returns the features of one of its layers."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        model = CLIPVisionModel(config.clip)
        # transformers 5 flattened this class in a minor version; keys are mapped onto the inner module in both.
        self.encoder = cast("nn.Module", getattr(model, "vision_model", model))
        self.config = config

    @property
    def n_features(self) -> int:
        """Feature rows of one image."""
        return self.config.n_features

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of a batch of images, (images, features, width), from pixels (images, 3, height, width)."""
        dtype = next(self.encoder.parameters()).dtype
        outputs = self.encoder(pixel_values.to(dtype), output_hidden_states=True)
        features = cast("Tensor", outputs.hidden_states[self.config.select_layer])
        return features[:, 1:] if self.config.select_feature == "patch" else features
