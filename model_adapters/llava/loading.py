"""Original-format LLaVA checkpoints: full, projector-only and LoRA, with or without MoCa."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import folder_fingerprint
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.files import LlavaFiles, announce, open_llava
from mir_plugin.model_adapters.llava.inspection import FAMILY, SHAREGPT4V
from mir_plugin.model_adapters.llava.merging import Merge
from mir_plugin.model_adapters.llava.model import LlavaModel
from mir_plugin.model_adapters.llava.parts import NEWLINE, SUPPORTED_LLMS, Parts, open_parts, supported_llm
from mir_plugin.model_adapters.llava.preprocess import ClipPreprocessor, open_preprocessor
from mir_plugin.model_adapters.llava.projectors import build_projector
from mir_plugin.model_adapters.llava.sizes import require_own_tokenizer
from mir_plugin.model_adapters.llava.tower_config import CLIP
from mir_plugin.model_adapters.llava.vision_tower import ClipTower, build_tower
from mir_plugin.model_adapters.moca.calibration import calibrate
from mir_plugin.model_adapters.prompts.tokenizer import open_tokenizer
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.assignment import build_empty, check_fit
from mir_plugin.model_adapters.weights.device import chosen_device, chosen_dtype, dtype_of
from mir_plugin.model_adapters.weights.lora_layers import keep_beside, merge
from mir_plugin.model_adapters.weights.rotation import ROPE_PARAMETERS, is_newer_form
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.model_adapters.weights.stored import Weight
from mir_plugin.model_adapters.weights.streamed import assign_within
from mir_plugin.samples.sample_set import Sample

# What a wrong value in a config ends in, somewhere inside transformers.
_WRONG_VALUES = (
    StrictDataclassError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# The dtype is the weights' own, and padding is masked: these may say what they like.
_WITHOUT_EFFECT = frozenset({"model_type", "torch_dtype", "dtype", "pad_token_id"})
# Values that the first code of a language model had under other names.
_OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "stablelm": {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
}


def load(
    folder: CheckpointFolder, options: LoadOptions, *, family: str = FAMILY, shared: SharedParts | None = None
) -> LlavaAdapter:
    """Load a checkpoint of the LLaVA layout.

    Raises:
        MirError: if parts are missing, damaged, or do not fit each other.
    """
    return assemble(_prepared(folder, options, family), options, shared=shared)


def check(folder: CheckpointFolder, options: LoadOptions, *, family: str = FAMILY) -> dict[str, str]:
    """Raise MirError as ``load`` would, for all but the values of weights; reads none."""
    require_loadable(_prepared(folder, options, family), options)
    return {}


@dataclass(frozen=True)
class Prepared:
    """What a checkpoint is made of, before a weight is read.

    Attributes:
        family: as ``mir adapters`` names it.
        files: where everything is.
        build_tower: makes the empty tower; its parameters are named ``vision_tower.*`` in ``files.weights``.
        preprocessor: makes pixels of pictures.
        merge_views: how the views of a picture become vision tokens; None where a picture is one view.
        more_facts: what was recognised and chosen besides LLaVA's facts.
    """

    family: str
    files: LlavaFiles
    build_tower: Callable[[], ClipTower]
    preprocessor: ClipPreprocessor
    merge_views: Merge | None = None
    more_facts: Mapping[str, Any] = field(default_factory=dict)


def _prepared(folder: CheckpointFolder, options: LoadOptions, family: str) -> Prepared:
    files = open_llava(folder, options, family=family)
    announce(files)
    parts = open_parts(files)
    preprocessor = open_preprocessor(
        files.tower, image_aspect_ratio=files.config.get("image_aspect_ratio"), views=parts.views
    )
    preprocessor.require_side(parts.tower.image_size, files.tower)
    weights = parts.tower.used(files.weights)
    if parts.merge is None or not parts.merge.has_newline:
        weights.pop(NEWLINE, None)  # as the original, which builds no such parameter
    return Prepared(
        family,
        replace(files, weights=weights),
        lambda: build_tower(parts.tower),
        preprocessor.of_side(parts.tower.picture_side) if parts.tower.scales else preprocessor,
        parts.merge,
        _facts(parts),
    )


def load_sharegpt4v(
    folder: CheckpointFolder, options: LoadOptions, *, shared: SharedParts | None = None
) -> LlavaAdapter:
    """Load a ShareGPT4V checkpoint, whose layout is LLaVA's.

    What differs is which vision tower the original loader takes: always the one its config names, although training
    may have left a tuned one inside the checkpoint. Here the trained weights win, as everywhere; ``--vision-tower``
    reproduces the original loader.

    Raises:
        MirError: as ``load``.
    """
    return load(folder, options, family=SHAREGPT4V, shared=shared)


def check_sharegpt4v(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """Raise MirError as loading a ShareGPT4V checkpoint would, as ``check``."""
    return check(folder, options, family=SHAREGPT4V)


def require_loadable(prepared: Prepared, options: LoadOptions) -> None:
    """Go through what ``assemble`` and the first sample go through, with parameters that have no memory.

    Raises:
        MirError: as ``assemble``, for all but the values of weights.
    """
    model, weights = _fitted(prepared, options)
    check_fit(model, weights)
    files, preprocessor = prepared.files, prepared.preprocessor
    tokenizer = open_tokenizer(files.tokenizer)
    require_own_tokenizer(tokenizer, files)
    adapter = LlavaAdapter(prepared.family, files, model, tokenizer, preprocessor, fingerprint="", more_facts={})
    adapter.encode([Sample("a blank picture", Image.new("RGB", (64, 48)), "a")])


def assemble(prepared: Prepared, options: LoadOptions, *, shared: SharedParts | None = None) -> LlavaAdapter:
    """Build the model around a family's vision tower, and give every part of it its weights.

    Args:
        shared: what the checkpoint loaded before left; nothing is shared where layers are streamed, because what is
            shared stays on the device.

    Raises:
        MirError: if parts do not fit each other.
    """
    files, preprocessor, more_facts = prepared.files, prepared.preprocessor, prepared.more_facts
    fingerprint = folder_fingerprint(files.folders)
    device = chosen_device(options.device)
    dtype = chosen_dtype(options.dtype) or dtype_of(files.dtype_name)
    model, weights = _fitted(prepared, options)
    # What several views show is not kept: it is many times the features of one view.
    sees_once = preprocessor.views is None
    shared = shared if options.device_memory is None else None
    if shared:
        weights = shared.known(weights, device, dtype)
    streamed = assign_within(
        model, weights, device, dtype, layers="base_llm.model.layers", device_memory=options.device_memory
    )
    features = None
    if shared:
        shared.keep(model, weights)
        tower = model.vision_tower.config.as_json()
        seen = shared.features_seen_through((prepared.family, preprocessor, tower, more_facts))
        features = seen if sees_once else None
    tokenizer = open_tokenizer(files.tokenizer)
    require_own_tokenizer(tokenizer, files)
    return LlavaAdapter(
        prepared.family,
        files,
        model,
        tokenizer,
        preprocessor,
        streamed=streamed,
        features=features,
        fingerprint=fingerprint,
        more_facts=more_facts,
    )


def _fitted(prepared: Prepared, options: LoadOptions) -> tuple[LlavaModel, dict[str, Weight]]:
    """The empty model, and the weights of its parameters, unread."""
    files = prepared.files
    llm_config, llm_class = _llm(files, supported_llm(files))

    def build() -> LlavaModel:
        tower = prepared.build_tower()
        projector = build_projector(files.config, files.weights, tower.config.feature_width)
        model = LlavaModel(tower, projector, _own_decoder(llm_class(llm_config), files), prepared.merge_views)
        if files.has_moca:
            model.moca_positions = calibrate(model.decoder_layers, model.hidden_size)
        return model

    try:
        model = build_empty(build)
    except _WRONG_VALUES as error:
        raise _no_model(files, error) from error
    if options.merge_lora:
        return model, merge(files.weights, files.lora)
    return model, keep_beside(files.weights, files.lora, model)


def _facts(parts: Parts) -> dict[str, Any]:
    """What only some checkpoints have; those of LLaVA-1.5's parts stay as they were."""
    facts: dict[str, Any] = {} if parts.tower.kind is CLIP else {"vision_tower_kind": parts.tower.kind.name}
    if parts.merge is not None:
        facts["mm_patch_merge_type"] = parts.merge.kind
    if parts.views is not None:
        facts["image_grid_pinpoints"] = [list(size) for size in parts.views.resolutions]
    if parts.tower.scales:
        facts["s2_scales"] = list(parts.tower.scales)
    return facts


def _own_decoder(llm: Any, files: LlavaFiles) -> Any:
    """The language model, if its layers are where the original code has them."""
    inner = getattr(llm, "model", None)
    if not hasattr(inner, "layers") or not hasattr(inner, "embed_tokens") or not hasattr(llm, "lm_head"):
        raise MirError(
            f"{files.checkpoint / 'config.json'} has model_type {files.config.get('model_type')!r}, which makes "
            f"a {type(llm).__name__}; {SUPPORTED_LLMS} Convert the checkpoint to the Hugging Face format, or write an "
            "adapter of your own (`mir adapters`)."
        )
    return llm


def _llm(files: LlavaFiles, kind: str) -> tuple[Any, Any]:
    """Config object and class of the language model, from the checkpoint's config."""
    config_class: Any = CONFIG_MAPPING[kind]
    fields = {name: value for name, value in files.config.items() if name not in _WITHOUT_EFFECT}
    fields |= {new: fields.pop(old) for old, new in _OLD_NAMES.get(kind, {}).items() if old in fields}
    fields["pad_token_id"] = None  # a default may lie beyond the vocabulary
    if not is_newer_form(files.config):
        fields.pop(ROPE_PARAMETERS, None)
    if fields.get("rope_scaling") is None:
        fields.pop("rope_scaling", None)
    try:
        config = config_class.from_dict(fields)
        return config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except _WRONG_VALUES as error:
        raise _no_model(files, error) from error


def _no_model(files: LlavaFiles, error: Exception) -> MirError:
    reason = " ".join(str(error).split())
    return MirError(
        f"{files.checkpoint / 'config.json'} (or config.json of {files.tower}) does not describe a model that can be "
        f"built: {type(error).__name__}: {reason}. Copy the checkpoint's own config."
    )
