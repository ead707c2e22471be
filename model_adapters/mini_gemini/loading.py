"""Original-format Mini-Gemini (MGM) checkpoints: LLaVA with a second, high-resolution vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.files import LlavaFiles, description, open_llava
from mir_plugin.model_adapters.llava.loading import assemble, require_loadable
from mir_plugin.model_adapters.llava.preprocess import ClipPreprocessor, open_preprocessor
from mir_plugin.model_adapters.llava.tower_config import open_tower_config
from mir_plugin.model_adapters.mini_gemini.convnext import ConvNextTower, build_convnext
from mir_plugin.model_adapters.mini_gemini.files import (
    AUX_PREFIX,
    CHECKPOINT_RULES,
    FAMILY,
    AuxTower,
    ViewLayout,
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
    parts = _parts(folder, options)
    return assemble(
        parts.files,
        options,
        family=FAMILY,
        build_tower=parts.build_towers,
        preprocessor=parts.preprocessor,
        more_facts={
            "vision_tower_aux": parts.aux.source,
            "image_size_aux": parts.size,
            "image_grid": parts.layout.grid,
            "image_global": parts.layout.with_global_view,
        },
        shared=shared,
    )


def inspect(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """What loading would use. Reads no weight; raises MirError as ``load``, for all but the values of weights."""
    parts = _parts(folder, options)
    require_loadable(
        parts.files, options, family=FAMILY, build_tower=parts.build_towers, preprocessor=parts.preprocessor
    )
    layout = parts.layout
    views = f"{layout.grid} x {layout.grid}" + (" and a global view" if layout.with_global_view else "")
    return description(parts.files, options) | {
        "second vision tower": parts.aux.source,
        "picture": f"{parts.size} pixels; low-resolution views {views}",
    }


@dataclass(frozen=True)
class _Parts:
    files: LlavaFiles
    aux: AuxTower
    layout: ViewLayout
    size: int
    build_towers: Callable[[], MiniGeminiTowers]
    preprocessor: ClipPreprocessor


def _parts(folder: CheckpointFolder, options: LoadOptions) -> _Parts:
    files = open_llava(folder, options, family=FAMILY, more_rules=CHECKPOINT_RULES)
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
    return _Parts(
        replace(files, weights=weights, more_folders=(*files.more_folders, *aux.folders)),
        aux,
        layout,
        size,
        build_towers,
        replace(preprocessor, short_side=size, crop=(size, size)),
    )


def _check_width(config: Mapping[str, Any], tower: ConvNextTower, source: str) -> None:
    declared = config.get("mm_hidden_size_aux", tower.n_channels)
    if declared != tower.n_channels:
        raise MirError(
            f"patch-info mining was trained on a second tower with {declared} channels (mm_hidden_size_aux), but this "
            f"one has {tower.n_channels}: {source}. Name the one it was trained with by --vision-tower-aux."
        )
