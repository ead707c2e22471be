"""Vision towers, as far as config and headers tell: architecture, use, and where the weights are.

Imports no torch; ``vision_tower`` builds what is described here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.key_rules import TOWER_FOLDER_RULES
from mir_plugin.model_adapters.weights.key_rules import rename
from mir_plugin.model_adapters.weights.stored import StoredTensor, Weight, open_checkpoint_weights, read_json

WeightT = TypeVar("WeightT", bound=Weight)


@dataclass(frozen=True)
class TowerKind:
    """What tells one kind of vision tower from another.

    Attributes:
        name: of the kind, for people.
        whole, vision: model_type of a config of image and text half, and of the image half alone.
        defaults: of transformers' config: a saved one leaves out what equals its default.
        has_class_token: whether a feature row stands before those of the patches.
        fixed_layer: the layer whose features count, whatever config.json says; None follows config.json.
    """

    name: str
    whole: str
    vision: str
    defaults: Mapping[str, int]
    has_class_token: bool
    fixed_layer: int | None


_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
CLIP = TowerKind("CLIP", "clip", "clip_vision_model", {**_SIZES, "patch_size": 32}, True, None)
# The fixed-resolution SigLIP 2 towers are SigLIP models to transformers. LLaVA-NeXT cuts off the last layer and takes
# what remains (llava/model/multimodal_encoder/siglip_encoder.py); Bunny takes hidden state -2: the same features.
SIGLIP = TowerKind("SigLIP", "siglip", "siglip_vision_model", {**_SIZES, "patch_size": 16}, False, -2)
TOWER_KINDS = (CLIP, SIGLIP)
_LAYERS = "vision_tower.encoder.encoder.layers."
_BEHIND_THE_LAYERS = ("vision_tower.encoder.head.", "vision_tower.encoder.post_layernorm.")


@dataclass(frozen=True)
class TowerConfig:
    """A tower's architecture, and what LLaVA's config says about using it.

    Attributes:
        path: of the tower's config.json.
        architecture: of the vision model, as that file has it.
        select_layer: which hidden state is used; -2 is the last but one.
        select_feature: "patch" drops the class token, "cls_patch" keeps it; a tower without one gives every row.
        kind: of the tower.
        scales: sides of the pictures whose features are put side by side (S2), the tower's own first; empty without.
    """

    path: Path
    architecture: Mapping[str, Any]
    select_layer: int
    select_feature: str
    kind: TowerKind = CLIP
    scales: tuple[int, ...] = ()

    @property
    def n_features(self) -> int:
        """Feature rows of one image."""
        return self.patches_per_side**2 + (self.kind.has_class_token and self.select_feature == "cls_patch")

    @property
    def feature_width(self) -> int:
        """Width of a feature as the projector gets it."""
        return self.hidden_size * (len(self.scales) or 1)

    @property
    def picture_side(self) -> int:
        """Side in pixels of the picture that is handed in."""
        return max(self.scales, default=self.image_size)

    @property
    def hidden_size(self) -> int:
        """Width of the tower."""
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
        more: dict[str, Any] = {} if not self.scales else {"scales": list(self.scales)}
        return {**use, **more, self.kind.whole: dict(self.architecture)}

    def used(self, weights: Mapping[str, WeightT]) -> dict[str, WeightT]:
        """The weights of a model without those behind the layer that a SigLIP tower's features come from."""
        if self.kind.fixed_layer is None:
            return dict(weights)
        unused = (*_BEHIND_THE_LAYERS, f"{_LAYERS}{self.n_layers - 1}.")
        return {name: weight for name, weight in weights.items() if not name.startswith(unused)}


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
    model_type = config.get("model_type")
    kind = next((kind for kind in TOWER_KINDS if model_type in (kind.whole, kind.vision)), None)
    if kind is None:
        known = ", ".join(repr(name) for kind in TOWER_KINDS for name in (kind.whole, kind.vision))
        raise MirError(
            f"the vision tower in {folder} has model_type {model_type!r}; supported: {known}. Name a CLIP or SigLIP "
            "tower with --vision-tower; for another one, convert the checkpoint to the Hugging Face format, or write "
            "an adapter of your own (`mir adapters`)."
        )
    architecture = _architecture(path, config, kind)
    tower = TowerConfig(
        path,
        architecture,
        llava_config.get("mm_vision_select_layer", -2) if kind.fixed_layer is None else kind.fixed_layer,
        llava_config.get("mm_vision_select_feature", "patch"),
        kind,
        _scales(llava_config, architecture["image_size"]),
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


def _scales(llava_config: Mapping[str, Any], image_size: int) -> tuple[int, ...]:
    """S2's sides, smallest first; empty where config.json does not ask for S2."""
    if not (llava_config.get("s2") or llava_config.get("use_s2")):
        return ()
    stated = llava_config.get("s2_scales") or ",".join(str(image_size * factor) for factor in (1, 2, 3))
    try:
        scales = tuple(sorted(int(scale) for scale in str(stated).split(",")))
    except ValueError:
        scales = ()
    if not scales or scales[0] != image_size or any(scale % image_size for scale in scales):
        raise MirError(
            f"s2_scales is {stated!r} in config.json, expected multiples of the vision tower's {image_size} pixels, "
            f"{image_size} among them. Copy the checkpoint's own config, or name its tower with --vision-tower."
        )
    return scales


def _architecture(path: Path, config: Mapping[str, Any], kind: TowerKind) -> Mapping[str, Any]:
    """The config of the vision model, sizes included that are not stated because they are transformers' defaults."""
    if config.get("model_type") == kind.whole:
        if not isinstance(config.get("vision_config"), dict):
            raise MirError(
                f"{path} describes a whole {kind.name} model without its vision_config. Copy the tower's own config."
            )
        config = config["vision_config"]
    for name, default in kind.defaults.items():
        value = config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MirError(f"{path} has {name} = {value!r}, expected a positive whole number. Copy its own config.")
    return {**kind.defaults, **config}


def _require_sizes_of_weights(tower: TowerConfig, weights: Mapping[str, Weight]) -> None:
    """Before the tower is built: one of a billion layers, or for pictures of 10^6 pixels a side, takes all memory."""
    layers = {name.split(".")[4] for name in weights if name.startswith(_LAYERS)}
    described = {"num_hidden_layers": tower.n_layers}
    stored = {"num_hidden_layers": len(layers)}
    if tower.kind.fixed_layer is not None and len(layers) == tower.n_layers - 1:  # saved without the one cut off
        stored = {}
    positions = weights.get("vision_tower.encoder.embeddings.position_embedding.weight")
    if positions is not None:
        described |= {
            "hidden_size": tower.hidden_size,
            "image_size": tower.patches_per_side**2 + tower.kind.has_class_token,
        }
        stored |= {"hidden_size": positions.shape[1], "image_size": positions.shape[0]}
    for name, size in stored.items():
        if size and described[name] != size:
            meaning = f", so {described[name]} position embeddings," if name == "image_size" else ","
            raise MirError(
                f"{tower.path} says {name} = {tower.architecture[name]}{meaning} but the tower's weights have {size}. "
                "Name the tower that the weights belong to with --vision-tower, or copy the weights again."
            )


def open_tower_weights(folder: Path) -> dict[str, StoredTensor]:
    """Weights of a tower's folder under the names of ``ClipTower`` and ``SiglipTower``."""
    weights = rename(open_checkpoint_weights(folder), TOWER_FOLDER_RULES, family="vision tower")
    return {f"encoder.{name}": weight for name, weight in weights.items()}
