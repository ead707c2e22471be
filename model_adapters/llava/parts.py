"""The parts of a LLaVA checkpoint and how they go together, as far as configs and headers tell. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.base_llm import llm_kind
from mir_plugin.model_adapters.llava.files import LlavaFiles
from mir_plugin.model_adapters.llava.merging import Merge, open_merge
from mir_plugin.model_adapters.llava.sizes import require_own_base, require_sizes_of_weights
from mir_plugin.model_adapters.llava.tower_config import TowerConfig, open_tower_config
from mir_plugin.model_adapters.llava.views import Views, views_of

NEWLINE = "image_newline"
# Known to be causal language models of transformers; whether others are is asked there, which imports torch.
_LLMS = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "gemma2", "stablelm"})
_PROJECTORS = re.compile(r"linear|qformer|ldpnetv2|mlp\d+x_gelu")
_EXPERTS = (".block_sparse_moe.", ".mlp.experts.")
SUPPORTED_LLMS = (
    "supported are causal language models of transformers with model.layers, with or without a fork's name before "
    "theirs: llava_qwen, bunny-phi, mgm_gemma, mistral …"
)
_INSTEAD = (
    "Convert the checkpoint to the Hugging Face format where transformers has its model, or write an adapter of your "
    "own (`mir adapters`)."
)


@dataclass(frozen=True)
class Parts:
    """What is built besides the projector.

    Attributes:
        llm: model_type of the language model in transformers.
        tower: of the vision tower.
        views: how pictures are cut; None where each is one view.
        merge: how the views' rows become vision tokens; None where one view's rows are.
    """

    llm: str
    tower: TowerConfig
    views: Views | None
    merge: Merge | None


def open_parts(files: LlavaFiles) -> Parts:
    """The parts, checked against the weights' headers.

    Raises:
        MirError: for a part that is not supported, or that contradicts another.
    """
    llm = supported_llm(files)
    tower = open_tower_config(files.tower, files.config, files.weights)
    views = views_of(files.config, tower.image_size)
    merge = open_merge(files.config, views, tower.patches_per_side, stored=NEWLINE in files.weights)
    projector = str(files.config.get("mm_projector_type", "linear"))
    if not _PROJECTORS.fullmatch(projector):
        raise MirError(
            f"{files.checkpoint / 'config.json'}: mm_projector_type is {projector!r}; supported: linear, qformer, "
            f"ldpnetv2, mlpNx_gelu for any N. {_INSTEAD}"
        )
    if views is not None and (projector in ("qformer", "ldpnetv2") or tower.n_features != tower.patches_per_side**2):
        raise MirError(
            f"{files.checkpoint / 'config.json'} has image_aspect_ratio {files.config['image_aspect_ratio']!r} with "
            f"mm_projector_type {projector!r} and {tower.n_features} features a view; views are put together from one "
            f"vision token per patch. {_INSTEAD}"
        )
    if views is not None and tower.scales:
        raise MirError(f"{files.checkpoint / 'config.json'} asks for S2 and anyres at once. {_INSTEAD}")
    return Parts(llm, tower, views, merge)


def supported_llm(files: LlavaFiles) -> str:
    """The language model's model_type in transformers, its sizes and its base checked.

    Raises:
        MirError: if transformers has no such causal language model, or it contradicts weights or base.
    """
    stated = str(files.config.get("model_type"))
    kind = llm_kind(stated, files.weights)
    path = files.checkpoint / "config.json"
    if kind not in _LLMS and not _is_causal_llm(kind):
        raise MirError(f"{path} has model_type {stated!r}; {SUPPORTED_LLMS} {_INSTEAD}")
    has_experts = any(marker in name for name in files.weights for marker in _EXPERTS)
    if has_experts or "moe" in kind or kind == "mixtral":
        raise MirError(f"{path} has model_type {stated!r}, a language model with experts; not read. {_INSTEAD}")
    require_sizes_of_weights(files)
    require_own_base(files, kind)
    return kind


def _is_causal_llm(kind: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
