"""Original-format Mini-Gemini (MGM) checkpoints: LLaVA with a second, high-resolution vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.files import announce, open_llava
from mir_plugin.model_adapters.llava.loading import Prepared, assemble, require_loadable
from mir_plugin.model_adapters.llava.preprocess import open_preprocessor
from mir_plugin.model_adapters.llava.tower_config import open_tower_config
from mir_plugin.model_adapters.mini_gemini.convnext import ConvNextTower, build_convnext
from mir_plugin.model_adapters.mini_gemini.files import (
    AUX_PREFIX,
    CHECKPOINT_RULES,
    FAMILY,
    open_aux_tower,
    view_layout,
)
from mir_plugin.model_adapters.mini_gemini.patch_info_mining import PatchInfoMining
from mir_plugin.model_adapters.mini_gemini.vision import MiniGeminiTowers
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.shared_parts import SharedParts


def load(folder: CheckpointFolder, options: LoadOptions, *, shared: SharedParts | None = None) -> LlavaAdapter:
    """Load a full or projector-only checkpoint.

    Raises:
        MirError: if parts are missing, damaged, or do not fit each other.
    """
    return assemble(_prepared(folder, options), options, shared=shared)


def check(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """Raise MirError as ``load`` would, for all but the values of weights; reads none."""
    require_loadable(_prepared(folder, options), options)
    return {}


def _prepared(folder: CheckpointFolder, options: LoadOptions) -> Prepared:
    files = open_llava(folder, options, family=FAMILY, more_rules=CHECKPOINT_RULES)
    announce(files)
    aux = open_aux_tower(files, options)
    tower_config = open_tower_config(files.tower, files.config, files.weights)
    layout = view_layout(files.config, tower_config)
    size = int(files.config["image_size_aux"])

    def build_towers() -> MiniGeminiTowers:
        aux_tower = build_convnext({name: weight.shape for name, weight in aux.weights.items()}, aux.source)
        _check_width(files.config, aux_tower, aux.source)
        mining = PatchInfoMining(tower_config.hidden_size, aux_tower.n_channels)
        return MiniGeminiTowers(tower_config, aux_tower, mining, layout)

    weights = {name: weight for name, weight in files.weights.items() if not name.startswith(AUX_PREFIX)}
    weights |= {f"{AUX_PREFIX}{name}": weight for name, weight in aux.weights.items()}
    preprocessor = open_preprocessor(files.tower, image_aspect_ratio=files.config.get("image_aspect_ratio"))
    return Prepared(
        FAMILY,
        replace(files, weights=weights, more_folders=(*files.more_folders, *aux.folders)),
        build_towers,
        replace(preprocessor, short_side=size, crop=(size, size)),
        more_facts={
            "vision_tower_aux": aux.source,
            "image_size_aux": size,
            "image_grid": layout.grid,
            "image_global": layout.with_global_view,
        },
    )


def _check_width(config: Mapping[str, Any], tower: ConvNextTower, source: str) -> None:
    declared = config.get("mm_hidden_size_aux", tower.n_channels)
    if declared != tower.n_channels:
        raise MirError(
            f"patch-info mining was trained on a second tower with {declared} channels (mm_hidden_size_aux), but this "
            f"one has {tower.n_channels}: {source}. Name the one it was trained with by --vision-tower-aux."
        )
