"""Projectors: from vision features to vision tokens, the rows of an image in the language model's sequence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import Weight

PROJECTORS = ("linear", "qformer", "ldpnetv2", "mlpNx_gelu")


class Projector(Protocol):
    """What every projector offers, whatever its kind."""

    def n_vision_tokens(self, n_features: int) -> int:
        """Rows that ``n_features`` features of one image become."""
        ...

    def __call__(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Vision tokens (images, rows, d) from features (images, features, width).

        ``text_ids`` and ``text_mask`` (images, ids) are the prompt around each image, for projectors that read it.
        """
        ...


class MlpProjector(nn.Module):
    """N linear layers with GELU between them, row by row (``linear`` and ``mlpNx_gelu``)."""

    def __init__(self, n_layers: int, vision_width: int, d: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(vision_width, d)]
        for _ in range(n_layers - 1):
            layers += [nn.GELU(), nn.Linear(d, d)]
        self.layers = nn.Sequential(*layers)

    def n_vision_tokens(self, n_features: int) -> int:
        """One row per feature."""
        return n_features

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Vision tokens (images, rows, d); the prompt is not read."""
        return cast("Tensor", self.layers(features))


class LdpProjector(nn.Module):
    """MobileVLM's ``ldpnetv2``: two linear layers, 12 x 12 averages of the features' map, positions by a convolution.

    Source: mobilevlm/model/vision_projector.py of Meituan-AutoML/MobileVLM, LDPNetV2Projector.
    """

    SIDE = 12

    def __init__(self, vision_width: int, d: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(vision_width, d), nn.GELU(), nn.Linear(d, d))})
        self.peg = nn.ModuleDict({"peg": nn.Sequential(nn.Conv2d(d, d, 3, 1, 1, groups=d))})

    def n_vision_tokens(self, n_features: int) -> int:
        """As many as the averages."""
        return self.SIDE**2

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Vision tokens (images, 144, d); the prompt is not read."""
        rows = self.mlp["mlp"](features)
        side = round(rows.shape[1] ** 0.5)
        grid = adaptive_avg_pool2d(rows.transpose(1, 2).unflatten(2, (side, side)), self.SIDE)
        return cast("Tensor", (self.peg["peg"](grid) + grid).flatten(2).transpose(1, 2))


def build_projector(config: Mapping[str, Any], weights: Mapping[str, Weight], vision_width: int) -> Projector:
    """The empty projector that a LLaVA config describes; a Q-Former's sizes are read from its weights' shapes.

    Raises:
        MirError: if the kind is unknown, or the tower's width is not the one the projector was trained for.
    """
    kind = str(config.get("mm_projector_type", "linear"))
    declared = config.get("mm_hidden_size", vision_width)
    if declared != vision_width:
        raise MirError(
            f"the projector takes features of width {declared} (mm_hidden_size of config.json), but the vision tower "
            f"gives {vision_width}. Name the tower it was trained with by --vision-tower."
        )
    d = int(config["hidden_size"])
    if kind == "linear":
        return MlpProjector(1, vision_width, d)
    if mlp := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        n_stored = sum(name.startswith("projector.layers.") and name.endswith(".weight") for name in weights)
        if int(mlp.group(1)) != n_stored:
            raise MirError(
                f"config.json says mm_projector_type {kind}, but the weights hold {n_stored} projector layers. "
                f"Copy config and projector of one checkpoint."
            )
        return MlpProjector(n_stored, vision_width, d)
    if kind == "qformer":
        from mir_plugin.model_adapters.llava.qformer import QformerProjector

        return QformerProjector.from_shapes(weights)
    if kind == "ldpnetv2":
        return LdpProjector(vision_width, d)
    raise MirError(
        f"mm_projector_type is {kind!r} in config.json; supported: {', '.join(PROJECTORS)} for any N. Convert the "
        "checkpoint to the Hugging Face format where transformers has its model, or write an adapter of your own "
        "(`mir adapters`)."
    )
