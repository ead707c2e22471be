"""CLIP vision towers: the patch features a projector receives."""

from __future__ import annotations

from typing import cast

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.tower_config import TowerConfig


class ClipTower(nn.Module):
    """A CLIP vision transformer that returns the features of one of its layers."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        model = CLIPVisionModel(_clip_config(config))
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


def _clip_config(tower: TowerConfig) -> CLIPVisionConfig:
    try:
        return CLIPVisionConfig.from_dict(dict(tower.architecture))
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MirError(
            f"{tower.path} describes no CLIP vision tower: {reason}. Copy the tower's own config."
        ) from error
