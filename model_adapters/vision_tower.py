"""CLIP vision towers: where their weights come from, and the patch features a projector receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.checkpoint import KeyRule, rename
from mir_plugin.model_adapters.weight_files import Weight, open_checkpoint_weights, read_json

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


def open_tower_config(folder: Path, llava_config: Mapping[str, Any]) -> TowerConfig:
    """Architecture from the tower's folder, use from the checkpoint's config.

    Raises:
        MirError: if the folder's model is no CLIP model, or the config asks for a layer or feature there is not.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise MirError(
            f"the vision tower in {folder} has model_type {kind!r}, expected 'clip' or 'clip_vision_model'. "
            f"Name a CLIP tower with --vision-tower."
        )
    clip = CLIPVisionConfig.from_dict(config["vision_config"] if kind == "clip" else config)
    select_layer = int(llava_config.get("mm_vision_select_layer", -2))
    select_feature = llava_config.get("mm_vision_select_feature", "patch")
    if not -clip.num_hidden_layers - 1 <= select_layer <= clip.num_hidden_layers:
        raise MirError(
            f"mm_vision_select_layer is {select_layer}, but the vision tower in {folder} has "
            f"{clip.num_hidden_layers} layers. Check config.json, or name another tower with --vision-tower."
        )
    if select_feature not in ("patch", "cls_patch"):
        raise MirError(f"mm_vision_select_feature is {select_feature!r}, expected 'patch' or 'cls_patch'.")
    return TowerConfig(clip, select_layer, select_feature)


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
