"""Original-format LLaVA-1.5 checkpoints: full, projector-only and LoRA, with or without MoCa."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from mir_plugin.errors import MirError
from mir_plugin.fingerprint import folder_fingerprint
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.checkpoint import assign, build_empty
from mir_plugin.model_adapters.conversation import IMAGE_PLACEHOLDER, VICUNA_V1, Conversation, prompt_ids
from mir_plugin.model_adapters.generation import IMAGE_MARK
from mir_plugin.model_adapters.llava_files import LlavaFiles, open_llava
from mir_plugin.model_adapters.llava_model import LlavaModel
from mir_plugin.model_adapters.lora import keep_beside, merge
from mir_plugin.model_adapters.moca import VisionPositions, calibrate
from mir_plugin.model_adapters.preprocess import ClipPreprocessor, open_preprocessor
from mir_plugin.model_adapters.projectors import build_projector
from mir_plugin.model_adapters.sequences import ExpandedPrompt, PaddedBatch, expand, padded, padded_batch
from mir_plugin.model_adapters.tokens import Tokenizer, open_tokenizer
from mir_plugin.model_adapters.vision_tower import ClipTower, open_tower_config
from mir_plugin.model_adapters.weight_files import read_json
from mir_plugin.samples import Sample
from mir_plugin.types import Batch, Decoder

FAMILY = "llava-1.5"
_LLMS: Mapping[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
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


def recognises(checkpoint: Path) -> bool:
    """Whether config.json has LLaVA's ``mm_vision_tower``; families built on LLaVA stand before it in the table."""
    return "mm_vision_tower" in read_json(checkpoint / "config.json")


def load(checkpoint: Path, options: LoadOptions, *, family: str = FAMILY) -> LlavaAdapter:
    """Load a checkpoint of the LLaVA layout.

    Raises:
        MirError: if parts are missing, damaged, or do not fit each other.
    """
    files = open_llava(checkpoint, options, family=family)
    tower = open_tower_config(files.tower, files.config)
    preprocessor = open_preprocessor(files.tower, image_aspect_ratio=files.config.get("image_aspect_ratio"))
    return assemble(files, options, family=family, build_tower=lambda: ClipTower(tower), preprocessor=preprocessor)


def assemble(
    files: LlavaFiles,
    options: LoadOptions,
    *,
    family: str,
    build_tower: Callable[[], ClipTower],
    preprocessor: ClipPreprocessor,
    more_facts: Mapping[str, Any] | None = None,
) -> LlavaAdapter:
    """Build the model around a family's vision tower, and give every part of it its weights.

    Args:
        build_tower: makes the empty tower; its parameters are named ``vision_tower.*`` in ``files.weights``.
        more_facts: what was recognised and chosen besides LLaVA's facts.

    Raises:
        MirError: if parts do not fit each other.
    """
    device = torch.device(options.device if options.device != "auto" else _default_device())
    dtype = _dtype(options.dtype, files)
    llm_config, llm_class = _llm(files)
    positions: VisionPositions | None = None

    def build() -> LlavaModel:
        nonlocal positions
        tower = build_tower()
        projector = build_projector(files.config, files.weights, tower.config.clip.hidden_size)
        model = LlavaModel(tower, projector, llm_class(llm_config))
        if files.has_moca:
            positions = calibrate(model.base_llm.model.layers, llm_config.hidden_size)
        return model

    model = build_empty(build)
    weights = merge(files.weights, files.lora) if options.merge_lora else keep_beside(files.weights, files.lora, model)
    assign(model, weights, device, dtype)
    tokenizer = open_tokenizer(files.tokenizer)
    return LlavaAdapter(family, files, model, tokenizer, preprocessor, positions, more_facts=more_facts or {})


class LlavaAdapter:
    """A loaded LLaVA checkpoint: the engine's ``ModelAdapter``."""

    def __init__(
        self,
        family: str,
        files: LlavaFiles,
        model: LlavaModel,
        tokenizer: Tokenizer,
        preprocessor: ClipPreprocessor,
        positions: VisionPositions | None,
        conversation: Conversation = VICUNA_V1,
        *,
        more_facts: Mapping[str, Any],
    ) -> None:
        self.family = family
        self.model = model
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.conversation = conversation
        self.device = model.base_llm.lm_head.weight.device
        self.dtype = model.base_llm.lm_head.weight.dtype
        inner = model.base_llm.model
        self.decoder = Decoder(layers=list(inner.layers), final_norm=inner.norm)
        self.facts = _facts(family, files, model, tokenizer, conversation, self.device, self.dtype) | more_facts
        self._positions = positions
        self._image_mark = _image_mark(files, tokenizer)
        self._cut_at: int | None = files.config.get("tokenizer_model_max_length")
        self._n_positions = int(model.base_llm.config.max_position_embeddings)
        self._vocabulary_size = int(model.base_llm.lm_head.weight.shape[0])

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Prompts with the sample's text as the assistant's answer, cut as in training; images as pixels.

        Raises:
            MirError: if a text is empty, nothing of it is left after the cut, or a prompt exceeds the context.
        """
        prompts = [self._teacher_forced(sample) for sample in samples]
        pixels = self.preprocessor([sample.open_image() for sample in samples])
        padding = padded_batch(prompts, self.device)
        return Batch(
            inputs={"prompts": padding, "pixel_values": pixels.to(self.device)},
            vision_mask=padding.vision_mask,
            text_mask=padded([prompt.text_mask() for prompt in prompts]).to(self.device),
            sample_ids=tuple(sample.sample_id for sample in samples),
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Last hidden states (samples, tokens, d) of one prefill."""
        prompts: PaddedBatch = batch.inputs["prompts"]
        with self.bound_to(batch):
            return self.model.prefill(self.model.embed(prompts, batch.inputs["pixel_values"]), prompts.attention_mask)

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Tells MoCa layers which positions of this batch are vision tokens; nothing for other checkpoints."""
        return nullcontext() if self._positions is None else self._positions.bound_to(batch.vision_mask)

    def _teacher_forced(self, sample: Sample) -> ExpandedPrompt:
        if not sample.text.strip():
            raise MirError(f"sample {sample.sample_id}: its text is empty. Remove the sample or give it a text.")
        text = self.conversation.answered(f"{IMAGE_MARK}\n", sample.text)
        whole = self._expanded(text, n_images=1)
        prompt = whole.cut(self._cut_at)
        if prompt.n_tokens > self._n_positions:
            raise MirError(
                f"sample {sample.sample_id}: its prompt has {prompt.n_tokens} tokens, more than the language model's "
                f"{self._n_positions} positions. Shorten or remove its text."
            )
        if not prompt.text_mask().any() or prompt.vision_mask.sum() < whole.vision_mask.sum():
            raise MirError(
                f"sample {sample.sample_id}: tokenizer_model_max_length {self._cut_at} leaves no text behind the image "
                f"({whole.n_tokens} tokens before the cut). Correct it in config.json."
            )
        return prompt

    def _expanded(self, text: str, n_images: int) -> ExpandedPrompt:
        ids = prompt_ids(self.tokenizer, text, n_images, self._image_mark)
        if max(ids) >= self._vocabulary_size:
            raise MirError(
                f"{self.tokenizer.source} gives token id {max(ids)}, but the language model has "
                f"{self._vocabulary_size} embeddings. The tokenizer belongs to another model."
            )
        return expand(ids, self.model.n_vision_tokens)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(name: str, files: LlavaFiles) -> torch.dtype:
    if name == "auto":
        embeddings = files.weights.get("base_llm.model.embed_tokens.weight")
        return torch.float32 if embeddings is None else embeddings.dtype
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise MirError(f"dtype {name!r} is not one of auto, {', '.join(dtypes)}.")
    return dtypes[name]


def _llm(files: LlavaFiles) -> tuple[Any, Any]:
    """Config object and class of the language model, from the checkpoint's config."""
    kind = files.config.get("model_type")
    if kind not in _LLM_OF_MODEL_TYPE:
        known = ", ".join(_LLM_OF_MODEL_TYPE)
        raise MirError(f"{files.checkpoint / 'config.json'} has model_type {kind!r}; supported: {known}.")
    config_class, llm_class = _LLMS[_LLM_OF_MODEL_TYPE[str(kind)]]
    fields = {name: value for name, value in files.config.items() if name not in ("model_type", "torch_dtype", "dtype")}
    if fields.get("rope_scaling") is None:
        fields.pop("rope_scaling", None)
    return config_class.from_dict(fields), llm_class


def _image_mark(files: LlavaFiles, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands for an image in unexpanded ids."""
    if not files.config.get("mm_use_im_start_end"):
        return (IMAGE_PLACEHOLDER,)
    start, end = tokenizer.encode("<im_start>"), tokenizer.encode("<im_end>")
    if len(start) != 1 or len(end) != 1:
        raise MirError(
            f"config.json says mm_use_im_start_end, but {tokenizer.source} has no tokens <im_start> and <im_end>. "
            f"Use the tokenizer saved with the checkpoint."
        )
    return (start[0], IMAGE_PLACEHOLDER, end[0])


def _facts(
    family: str,
    files: LlavaFiles,
    model: LlavaModel,
    tokenizer: Tokenizer,
    conversation: Conversation,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    return {
        "family": family,
        "checkpoint": str(files.checkpoint),
        "kind": files.kind,
        "base_llm": None if files.base_llm is None else str(files.base_llm),
        "vision_tower": files.tower_source,
        "projector": files.config.get("mm_projector_type", "linear"),
        "n_vision_tokens": model.n_vision_tokens,
        "image_aspect_ratio": files.config.get("image_aspect_ratio") or "square",
        "lora_modules": len(files.lora),
        "moca": files.has_moca,
        "tokenizer": str(tokenizer.source),
        "conversation": conversation.name,
        "prompt_template": conversation.answered(f"{IMAGE_MARK}\n", "{text}"),
        "checkpoint_fingerprint": folder_fingerprint(
            folder for folder in (files.checkpoint, files.base_llm, files.tower) if folder is not None
        ),
        "n_layers": len(model.base_llm.model.layers),
        "hidden_size": model.base_llm.config.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
    }
