"""Original-format Mini-Gemini (MGM) checkpoints: LLaVA with a second, high-resolution vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.files import description, open_llava
from mir_plugin.model_adapters.llava.loading import assemble
from mir_plugin.model_adapters.llava.preprocess import open_preprocessor
from mir_plugin.model_adapters.llava.vision_tower import TowerConfig, open_tower_config
from mir_plugin.model_adapters.mini_gemini.convnext import ConvNextTower, build_convnext
from mir_plugin.model_adapters.mini_gemini.files import AUX_PREFIX, CHECKPOINT_RULES, open_aux_tower
from mir_plugin.model_adapters.mini_gemini.patch_info_mining import PatchInfoMining
from mir_plugin.model_adapters.mini_gemini.vision import MiniGeminiTowers, ViewLayout
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.model_adapters.weights.stored import read_json

FAMILY = "mini-gemini"


def recognises(checkpoint: Path) -> bool:
    """Whether config.json says so: by model_type, under its name of either period, or by a second vision tower."""
    config = read_json(checkpoint / "config.json")
    return str(config.get("model_type")).startswith(("mgm", "mini_gemini")) or "mm_vision_tower_aux" in config


def load(checkpoint: Path, options: LoadOptions, *, shared: SharedParts | None = None) -> LlavaAdapter:
    """Load a full or projector-only checkpoint.

    Raises:
        MirError: if parts are missing, damaged, or do not fit each other.
    """
    files = open_llava(checkpoint, options, family=FAMILY, more_rules=CHECKPOINT_RULES)
    aux = open_aux_tower(files, options)
    tower_config = open_tower_config(files.tower, files.config, files.weights)
    layout = view_layout(files.config, tower_config)
    size = int(files.config["image_size_aux"])

    def build_towers() -> MiniGeminiTowers:
        aux_tower = build_convnext({name: weight.shape for name, weight in aux.weights.items()}, aux.source)
        _check_width(files.config, aux_tower, aux.source)
        mining = PatchInfoMining(tower_config.clip.hidden_size, aux_tower.n_channels)
        return MiniGeminiTowers(tower_config, aux_tower, mining, layout)

    weights = {name: weight for name, weight in files.weights.items() if not name.startswith(AUX_PREFIX)}
    weights |= {f"{AUX_PREFIX}{name}": weight for name, weight in aux.weights.items()}
    preprocessor = open_preprocessor(files.tower, image_aspect_ratio=files.config.get("image_aspect_ratio"))
    return assemble(
        replace(files, weights=weights, more_folders=aux.folders),
        options,
        family=FAMILY,
        build_tower=build_towers,
        preprocessor=replace(preprocessor, short_side=size, crop=(size, size)),
        more_facts={
            "vision_tower_aux": aux.source,
            "image_size_aux": size,
            "image_grid": layout.grid,
            "image_global": layout.with_global_view,
        },
        shared=shared,
    )


def inspect(checkpoint: Path, options: LoadOptions) -> dict[str, str]:
    """What loading would use; no weight is read. Raises MirError as loading would."""
    files = open_llava(checkpoint, options, family=FAMILY, more_rules=CHECKPOINT_RULES)
    layout = view_layout(files.config, open_tower_config(files.tower, files.config, files.weights))
    views = f"{layout.grid} x {layout.grid}" + (" and a global view" if layout.with_global_view else "")
    return description(files, options) | {
        "second vision tower": open_aux_tower(files, options).source,
        "picture": f"{files.config['image_size_aux']} pixels; low-resolution views {views}",
    }


def view_layout(config: Mapping[str, Any], tower: TowerConfig) -> ViewLayout:
    """How the checkpoint's config cuts pictures for the low-resolution tower.

    Raises:
        MirError: if the config lacks the size of the high-resolution picture, or its feature map cannot be shared out
            among the low-resolution tower's patches.
    """
    grid = config.get("image_grid") or 1
    if not isinstance(grid, int) or grid < 1:
        raise MirError(f"config.json has image_grid = {grid!r}, expected how many tiles a side: 1, or 2 for HD models.")
    layout = ViewLayout(tower.image_size, grid, with_global_view=grid > 1 and bool(config.get("image_global")))
    if tower.select_feature != "patch":
        raise MirError(
            f"mm_vision_select_feature is {tower.select_feature!r}, expected 'patch': patch-info mining has no part of "
            f"the picture for a class token. Correct config.json."
        )
    size = config.get("image_size_aux")
    step = ConvNextTower.STRIDE * grid * tower.patches_per_side
    if not isinstance(size, int) or size <= 0 or size % step:
        raise MirError(
            f"image_size_aux is {size!r}, expected a multiple of {step}: the side in pixels of the high-resolution "
            f"picture (768, HD models 1536), shared out evenly among the low-resolution tower's patches. "
            f"Correct config.json, or name the tower it was trained with by --vision-tower."
        )
    return layout


def _check_width(config: Mapping[str, Any], tower: ConvNextTower, source: str) -> None:
    declared = config.get("mm_hidden_size_aux", tower.n_channels)
    if declared != tower.n_channels:
        raise MirError(
            f"patch-info mining was trained on a second tower with {declared} channels (mm_hidden_size_aux), but this "
            f"one has {tower.n_channels}: {source}. Name the one it was trained with by --vision-tower-aux."
        )
