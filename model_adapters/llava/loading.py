"""Original-format LLaVA-1.5 checkpoints: full, projector-only and LoRA, with or without MoCa."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import folder_fingerprint
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.files import LlavaFiles, open_llava
from mir_plugin.model_adapters.llava.model import LlavaModel
from mir_plugin.model_adapters.llava.preprocess import ClipPreprocessor, open_preprocessor
from mir_plugin.model_adapters.llava.projectors import build_projector
from mir_plugin.model_adapters.llava.sizes import require_own_base, require_own_tokenizer, require_sizes_of_weights
from mir_plugin.model_adapters.llava.tower_config import open_tower_config
from mir_plugin.model_adapters.llava.vision_tower import ClipTower
from mir_plugin.model_adapters.moca.calibration import calibrate
from mir_plugin.model_adapters.prompts.tokenizer import open_tokenizer
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.assignment import build_empty
from mir_plugin.model_adapters.weights.device import chosen_device, chosen_dtype, dtype_of
from mir_plugin.model_adapters.weights.lora_layers import keep_beside, merge
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.model_adapters.weights.streamed import assign_within

FAMILY = "llava-1.5"
_LLMS: Mapping[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
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
_LLM_OF_MODEL_TYPE = {
    "llama": "llama",
    "llava": "llama",
    "llava_llama": "llama",
    "share4v": "llama",
    "mistral": "mistral",
    "llava_mistral": "mistral",
    "mgm": "llama",
    "mgm_mistral": "mistral",
    "mini_gemini": "llama",
    "mini_gemini_mistral": "mistral",
}


def load(
    folder: CheckpointFolder, options: LoadOptions, *, family: str = FAMILY, shared: SharedParts | None = None
) -> LlavaAdapter:
    """Load a checkpoint of the LLaVA layout.

    Raises:
        MirError: if parts are missing, damaged, or do not fit each other.
    """
    files = open_llava(folder, options, family=family)
    tower = open_tower_config(files.tower, files.config, files.weights)
    preprocessor = open_preprocessor(files.tower, image_aspect_ratio=files.config.get("image_aspect_ratio"))
    preprocessor.require_side(tower.image_size, files.tower)
    return assemble(
        files,
        options,
        family=family,
        build_tower=lambda: ClipTower(tower),
        preprocessor=preprocessor,
        shared=shared,
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
    return load(folder, options, family="sharegpt4v", shared=shared)


def assemble(
    files: LlavaFiles,
    options: LoadOptions,
    *,
    family: str,
    build_tower: Callable[[], ClipTower],
    preprocessor: ClipPreprocessor,
    more_facts: Mapping[str, Any] | None = None,
    shared: SharedParts | None = None,
) -> LlavaAdapter:
    """Build the model around a family's vision tower, and give every part of it its weights.

    Args:
        build_tower: makes the empty tower; its parameters are named ``vision_tower.*`` in ``files.weights``.
        more_facts: what was recognised and chosen besides LLaVA's facts.
        shared: what the checkpoint loaded before left; nothing is shared where layers are streamed, because what is
            shared stays on the device.

    Raises:
        MirError: if parts do not fit each other.
    """
    fingerprint = folder_fingerprint(files.folders)
    device = chosen_device(options.device)
    dtype = chosen_dtype(options.dtype) or dtype_of(files.dtype_name)
    llm_config, llm_class = _llm(files)

    def build() -> LlavaModel:
        tower = build_tower()
        projector = build_projector(files.config, files.weights, tower.config.hidden_size)
        model = LlavaModel(tower, projector, llm_class(llm_config))
        if files.has_moca:
            model.moca_positions = calibrate(model.decoder_layers, model.hidden_size)
        return model

    try:
        model = build_empty(build)
    except _WRONG_VALUES as error:
        raise _no_model(files, error) from error
    weights = merge(files.weights, files.lora) if options.merge_lora else keep_beside(files.weights, files.lora, model)
    shared = shared if options.device_memory is None else None
    if shared:
        weights = shared.known(weights, device, dtype)
    streamed = assign_within(
        model, weights, device, dtype, layers="base_llm.model.layers", device_memory=options.device_memory
    )
    features = None
    if shared:
        shared.keep(model, weights)
        features = shared.features_seen_through((family, preprocessor, model.vision_tower.config.as_json(), more_facts))
    tokenizer = open_tokenizer(files.tokenizer)
    require_own_tokenizer(tokenizer, files)
    return LlavaAdapter(
        family,
        files,
        model,
        tokenizer,
        preprocessor,
        streamed=streamed,
        features=features,
        fingerprint=fingerprint,
        more_facts=more_facts or {},
    )


def _llm(files: LlavaFiles) -> tuple[Any, Any]:
    """Config object and class of the language model, from the checkpoint's config."""
    kind = str(files.config.get("model_type"))
    if kind not in _LLM_OF_MODEL_TYPE:
        known = ", ".join(_LLM_OF_MODEL_TYPE)
        raise MirError(f"{files.checkpoint / 'config.json'} has model_type {kind!r}; supported: {known}.")
    config_class, llm_class = _LLMS[_LLM_OF_MODEL_TYPE[kind]]
    require_sizes_of_weights(files)
    require_own_base(files)
    fields = {name: value for name, value in files.config.items() if name not in _WITHOUT_EFFECT}
    if fields.get("rope_scaling") is None:
        fields.pop("rope_scaling", None)
    try:
        return config_class.from_dict(fields), llm_class
    except _WRONG_VALUES as error:
        raise _no_model(files, error) from error


def _no_model(files: LlavaFiles, error: Exception) -> MirError:
    reason = " ".join(str(error).split())
    return MirError(
        f"{files.checkpoint / 'config.json'} (or config.json of {files.tower}) does not describe a model that can be "
        f"built: {type(error).__name__}: {reason}. Copy the checkpoint's own config."
    )
