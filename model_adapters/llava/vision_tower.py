"""Vision towers: the patch features a projector receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.multiscale import multiscale
from mir_plugin.model_adapters.llava.tower_config import SIGLIP, TowerConfig


class ClipTower(nn.Module):
    """A CLIP vision transformer that returns the features of one of its layers."""

    def __init__(self, config: TowerConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if encoder is None:
            model = CLIPVisionModel(_of_transformers(CLIPVisionConfig, config, config.architecture))
            # transformers 5 flattened this class in a minor version; keys are mapped onto the inner module in both.
            encoder = cast("nn.Module", getattr(model, "vision_model", model))
        self.encoder = encoder
        self.config = config

    @property
    def n_features(self) -> int:
        """Feature rows of one image."""
        return self.config.n_features

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of a batch of images, (images, features, width), from pixels (images, 3, height, width)."""
        pixel_values = pixel_values.to(next(self.encoder.parameters()).dtype)
        if self.config.scales:
            return multiscale(self._features, pixel_values, self.config.scales)
        return self._features(pixel_values)

    def _features(self, pixel_values: Tensor) -> Tensor:
        outputs = self.encoder(pixel_values, output_hidden_states=True)
        features = cast("Tensor", outputs.hidden_states[self.config.select_layer])
        return features[:, 1:] if self.config.select_feature == "patch" else features


class SiglipTower(ClipTower):
    """A SigLIP vision transformer that returns what enters its last layer, a row per patch.

    The last layer, the norm and the pooling head behind it have no say in the features and are not built.
    """

    def __init__(self, config: TowerConfig) -> None:
        shortened = dict(config.architecture) | {"num_hidden_layers": config.n_layers - 1, "vision_use_head": False}
        model = SiglipVisionModel(_of_transformers(SiglipVisionConfig, config, shortened))
        encoder = getattr(model, "vision_model", model)
        encoder.post_layernorm = nn.Identity()
        super().__init__(config, encoder)

    def _features(self, pixel_values: Tensor) -> Tensor:
        encoder = cast("Any", self.encoder)
        return cast("Tensor", encoder.encoder(inputs_embeds=encoder.embeddings(pixel_values)).last_hidden_state)


def build_tower(config: TowerConfig) -> ClipTower:
    """The empty tower that a config describes. Raises MirError where it describes none."""
    return SiglipTower(config) if config.kind is SIGLIP else ClipTower(config)


def _of_transformers(config_class: Any, tower: TowerConfig, architecture: Mapping[str, Any]) -> Any:
    try:
        return config_class.from_dict(dict(architecture))
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MirError(
            f"{tower.path} describes no {tower.kind.name} vision tower: {reason}. Copy the tower's own config."
        ) from error
