"""The parts that a Mini-Gemini checkpoint has besides LLaVA's: the second vision tower and patch-info mining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.files import LlavaFiles, description, open_llava, search_places
from mir_plugin.model_adapters.llava.parts import supported_llm
from mir_plugin.model_adapters.llava.tower_config import CLIP, TowerConfig, open_tower_config
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.hub import find_folder
from mir_plugin.model_adapters.weights.key_rules import KeyRule, rename, weights_below
from mir_plugin.model_adapters.weights.stored import StoredTensor, open_weight_file

FAMILY = "mini-gemini"
# Pixels of the picture for each place of the second tower's feature map.
AUX_STRIDE = 4
AUX_PREFIX = "vision_tower.aux."
CHECKPOINT_RULES = (
    KeyRule("model.vision_tower_aux.vision_stem.", f"{AUX_PREFIX}stem."),
    KeyRule("model.vision_tower_aux.vision_stages.", f"{AUX_PREFIX}stages."),
    KeyRule("model.vlm_uni_", "vision_tower.mining."),
)
OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OPENCLIP_RULES = (
    KeyRule("visual.trunk.stem.", "stem."),
    KeyRule("visual.trunk.stages.", "stages."),
    KeyRule("visual.trunk.head.", None, "pooled output of the image half"),
    KeyRule("visual.head.", None, "joint space"),
    KeyRule("logit_scale", None, "joint space"),
    KeyRule("text_projection", None, "joint space"),
    KeyRule("transformer.", None, "text half"),
    KeyRule("token_embedding.", None, "text half"),
    KeyRule("positional_embedding", None, "text half"),
    KeyRule("ln_final.", None, "text half"),
    KeyRule("attn_mask", None, "text half"),
)


@dataclass(frozen=True)
class ViewLayout:
    """How a picture is cut for the low-resolution tower.

    Attributes:
        side: side of one view in pixels.
        grid: the picture is cut into grid x grid tiles, row by row.
        with_global_view: the whole picture, shrunk from what the tiles are cut from, goes before the tiles.
    """

    side: int
    grid: int = 1
    with_global_view: bool = False

    @property
    def n_views(self) -> int:
        """Pictures that the low-resolution tower sees."""
        return self.grid**2 + self.with_global_view


@dataclass(frozen=True)
class AuxTower:
    """The second vision tower, located.

    Attributes:
        source: where the weights come from, for people.
        folders: the folder they come from, unless it is the checkpoint's.
        weights: by name inside ``ConvNextTower``, still on disk.
    """

    source: str
    folders: tuple[Path, ...]
    weights: Mapping[str, StoredTensor]


def inspect(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """What loading would use, as headings and texts. Raises MirError for parts that are missing or do not fit."""
    files = open_llava(folder, options, family=FAMILY, more_rules=CHECKPOINT_RULES)
    aux = open_aux_tower(files, options)
    layout = view_layout(files.config, open_tower_config(files.tower, files.config, files.weights))
    supported_llm(files)
    views = f"{layout.grid} x {layout.grid}" + (" and a global view" if layout.with_global_view else "")
    return description(files, options) | {
        "second vision tower": aux.source,
        "picture": f"{files.config['image_size_aux']} pixels; low-resolution views {views}",
    }


def open_aux_tower(files: LlavaFiles, options: LoadOptions) -> AuxTower:
    """The high-resolution tower, from where the original takes it.

    That is its own folder, although the checkpoint holds a copy too: a frozen tower's copy is only rounded to bfloat16.
    With ``optimize_vision_tower_aux`` the copy was trained and counts. ``--vision-tower-aux`` overrides both; naming
    the checkpoint itself takes its copy.

    Raises:
        MirError: if the folder or the copy that counts is missing.
    """
    named = options.vision_tower_aux
    if named is not None and named.resolve() == files.checkpoint.resolve():
        return _inside(files, "named by --vision-tower-aux")
    if named is not None:
        return _from_folder(_find(named, ()), "named by --vision-tower-aux")
    if files.config.get("optimize_vision_tower_aux"):
        return _inside(files, "trained: optimize_vision_tower_aux")
    name = files.config.get("mm_vision_tower_aux")
    if not name:
        raise MirError(f"{files.checkpoint / 'config.json'} has no mm_vision_tower_aux. Add --vision-tower-aux DIR.")
    return _from_folder(_find(name, search_places(files.checkpoint)), "named by mm_vision_tower_aux")


def _inside(files: LlavaFiles, reason: str) -> AuxTower:
    weights = weights_below(files.weights, AUX_PREFIX)
    if not weights:
        raise MirError(
            f"{files.checkpoint} holds no weights of the second vision tower (model.vision_tower_aux.*), but they are "
            f"what counts ({reason}). Copy the whole checkpoint, or name the tower's folder with --vision-tower-aux."
        )
    return AuxTower(f"inside the checkpoint's weights ({reason})", (), weights)


def _find(name: Path | str, near: Sequence[Path]) -> Path:
    return find_folder(
        str(name), near, part="second vision tower", option="--vision-tower-aux", marker="open_clip_config.json"
    )


def _from_folder(folder: Path, reason: str) -> AuxTower:
    path = next((folder / name for name in OPENCLIP_FILES if (folder / name).is_file()), None)
    if path is None:
        raise MirError(
            f"{folder} holds no weights of an OpenCLIP model ({' or '.join(OPENCLIP_FILES)}). "
            f"Check that the download or copy is complete, or name another folder with --vision-tower-aux."
        )
    weights = rename(open_weight_file(path), OPENCLIP_RULES, family="OpenCLIP ConvNeXt")
    return AuxTower(f"{folder} ({reason})", (folder,), weights)


def view_layout(config: Mapping[str, Any], tower: TowerConfig) -> ViewLayout:
    """How the checkpoint's config cuts pictures for the low-resolution tower.

    Raises:
        MirError: if the config lacks the size of the high-resolution picture, or its feature map cannot be shared out
            among the low-resolution tower's patches.
    """
    grid = config.get("image_grid") or 1
    if not isinstance(grid, int) or grid < 1:
        raise MirError(f"config.json has image_grid = {grid!r}, expected the tiles per side: 1, or 2 for HD models.")
    if tower.kind is not CLIP:
        raise MirError(
            f"{tower.path} describes a {tower.kind.name} tower; Mini-Gemini's first tower is CLIP. Name the one it was "
            "trained with by --vision-tower."
        )
    layout = ViewLayout(tower.image_size, grid, with_global_view=grid > 1 and bool(config.get("image_global")))
    if tower.select_feature != "patch":
        raise MirError(
            f"mm_vision_select_feature is {tower.select_feature!r}, expected 'patch': patch-info mining has no part of "
            f"the picture for a class token. Correct config.json."
        )
    size = config.get("image_size_aux")
    step = AUX_STRIDE * grid * tower.patches_per_side
    if not isinstance(size, int) or size <= 0 or size % step:
        raise MirError(
            f"image_size_aux is {size!r}, expected a multiple of {step}: the side in pixels of the high-resolution "
            f"picture (768, HD models 1536), shared out evenly among the low-resolution tower's patches. "
            f"Correct config.json, or name the tower it was trained with by --vision-tower."
        )
    return layout
