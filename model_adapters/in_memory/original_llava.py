"""A LLaVA model that the original code has loaded already, inside a host tool: measured as it is, nothing is reloaded.

The original class is asked for one thing, ``prepare_inputs_labels_for_multimodal``: it splices projector rows into the
embeddings, and writes its "ignore" label where it put them. So the positions of the image come from the model itself,
whatever its projector.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import folder_fingerprint
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.huggingface.identity import memory_fingerprint
from mir_plugin.model_adapters.huggingface.inputs import evaluation_mode
from mir_plugin.model_adapters.huggingface.quantization import facts_of
from mir_plugin.model_adapters.introspection.decoder import attention_of, find_decoder
from mir_plugin.model_adapters.introspection.image_positions import text_mask
from mir_plugin.model_adapters.introspection.prepared import prepared_image, prepared_sample
from mir_plugin.model_adapters.llava.files import open_llava
from mir_plugin.model_adapters.llava.preprocess import padded_to_square
from mir_plugin.model_adapters.prompts.conversation import (
    CONVERSATIONS,
    IMAGE_PLACEHOLDER,
    VICUNA_V1,
    Conversation,
    prompt_ids,
)
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.hub import local_folder
from mir_plugin.model_adapters.weights.module_fingerprint import holds_stored
from mir_plugin.types import Batch, Decoder

if TYPE_CHECKING:
    from mir_plugin.samples.sample_set import Sample

SPLICE = "prepare_inputs_labels_for_multimodal"
_IGNORED = -100  # the original's label for positions without a text token
_CONVERSATION_OF_MODE = {"llava_v1": VICUNA_V1, "v1": VICUNA_V1} | CONVERSATIONS


class OriginalLlavaAdapter:
    """Model, tokenizer and image processor of the original LLaVA code, as the engine sees them.

    Attributes:
        family: "original-llava".
        facts: classes, prompt, dtype, and which checkpoint this is at the time of wrapping.
        device: where the language model's embeddings live.
        decoder: the language model's layers and final norm.
        max_batch: 1, as the original splices only single prompts without padding.
    """

    family = "original-llava"
    max_batch = 1

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, conversation: Conversation, checkpoint: str | None
    ) -> None:
        _require_one_plain_image(model)
        self._model = model
        self._tokenizer = _PieceTokenizer(tokenizer)
        self._image_processor = image_processor
        self._conversation = conversation
        embeddings: Tensor = model.get_input_embeddings().weight
        self.device: torch.device = embeddings.device
        self.decoder: Decoder = find_decoder(model)
        self._image_mark = self._tokenizer.image_mark(bool(getattr(model.config, "mm_use_im_start_end", False)))
        self.facts: Mapping[str, Any] = {
            "model_class": type(model).__name__,
            "image_aspect_ratio": getattr(model.config, "image_aspect_ratio", None) or "square",
            "conversation": conversation.name,
            "prompt_template": conversation.answered(f"{IMAGE_MARK}\n", "{text}"),
            "checkpoint_fingerprint": _identity(model, tokenizer, image_processor, checkpoint),
            "n_layers": len(self.decoder.layers),
            "dtype": dtype_name(embeddings.dtype),
            "attention": attention_of(model),
            **facts_of(model),
        }

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample]) -> Batch:
        """The prompt's embeddings with the vision tokens in place, cut as in training. Runs no decoder layer.

        Raises:
            MirError: for more than one sample, an empty text, a text of which the cut leaves nothing, or a prompt that
                is longer than the context.
        """
        if len(samples) != 1:
            raise MirError(f"original LLaVA code is measured one sample at a time; got {len(samples)}.")
        [sample] = samples
        if not sample.text.strip():
            raise MirError(f"sample {sample.sample_id}: its text is empty. Remove the sample, then run again.")
        text = self._conversation.answered(f"{IMAGE_MARK}\n", sample.text)
        ids = torch.tensor([prompt_ids(self._tokenizer, text, 1, self._image_mark)], device=self.device)
        pixels = self._pixels(sample)
        embeddings, labels = self._spliced(ids, pixels.to(self.device, self._model.get_input_embeddings().weight.dtype))
        vision = labels == _IGNORED
        texts = text_mask(vision, torch.ones_like(vision))
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit and vision.shape[1] > limit:
            raise MirError(
                f"sample {sample.sample_id}: prompt, image and text have {vision.shape[1]} tokens, but the model's "
                f"context is {limit}. Shorten or remove the text."
            )
        if not vision.any() or not texts.any():
            raise MirError(
                f"sample {sample.sample_id}: truncated to {int(vision.sum())} vision and {int(texts.sum())} text "
                "tokens. Increase tokenizer_model_max_length in the model's config, or remove the sample."
            )
        n_whole = ids.shape[1] - 1 + int(vision.sum())  # the mark of the image becomes its vision tokens
        prepared = prepared_sample(
            labels[0].masked_fill(vision[0], 0), prepared_image([pixels]), cut=vision.shape[1] < n_whole
        )
        return Batch({"inputs_embeds": embeddings}, vision, texts, (sample.sample_id,), (prepared,))

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Last hidden states (samples, tokens, d) of one prefill."""
        with self.bound_to(batch):
            return cast("Tensor", self._model.get_model()(**batch.inputs, use_cache=False, return_dict=True)[0])

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Evaluation mode for the length of the block."""
        return evaluation_mode(self._model)

    def _spliced(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (1, tokens, d) and labels (1, tokens): the token ids, and "ignore" on vision tokens."""
        splice = getattr(self._model, SPLICE)
        given = {
            "input_ids": ids,
            "labels": ids.masked_fill(ids == IMAGE_PLACEHOLDER, _IGNORED),
            "attention_mask": torch.ones_like(ids, dtype=torch.bool),
            "images": pixels,
        }
        names = [name for name in inspect.signature(splice).parameters if name not in ("image_sizes", "modalities")]
        with evaluation_mode(self._model):
            *_, embeddings, labels = splice(**{name: given.get(name) for name in names})
        return embeddings, labels

    def _pixels(self, sample: Sample) -> Tensor:
        image = sample.open_image().convert("RGB")
        if self.facts["image_aspect_ratio"] == "pad":
            image = padded_to_square(image, self._image_processor.image_mean)
        pixels: Tensor = self._image_processor.preprocess(image, return_tensors="pt")["pixel_values"]
        return pixels


def from_original(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    conv_mode: str = "llava_v1",
    checkpoint: str | None = None,
) -> OriginalLlavaAdapter:
    """Wrap a model that the original LLaVA code has loaded: LLaVA-1.5 and the families that share its class.

    Args:
        model: has ``prepare_inputs_labels_for_multimodal``.
        conv_mode: the original's name of the conversation template.
        checkpoint: folder or hub name that the weights came from; where every parameter holds what is stored there,
            the model counts as that checkpoint.
    Raises:
        MirError: for models that take several views of an image, another template, or if no decoder is found.
    """
    if conv_mode not in _CONVERSATION_OF_MODE:
        known = ", ".join(_CONVERSATION_OF_MODE)
        raise MirError(f"unknown conversation template {conv_mode!r}; known: {known}.")
    return OriginalLlavaAdapter(model, tokenizer, image_processor, _CONVERSATION_OF_MODE[conv_mode], checkpoint)


def _identity(model: Any, tokenizer: Any, image_processor: Any, checkpoint: str | None) -> str:
    folder = local_folder(checkpoint) if checkpoint else None
    if folder is not None:
        try:
            files = open_llava(CheckpointFolder.read(folder), LoadOptions(), family="llava-1.5")
            before = folder_fingerprint(files.folders)
            if holds_stored(model, files.weights.values()) and folder_fingerprint(files.folders) == before:
                return before
        except MirError:  # parts that only the host knows of, or files that are being written
            pass
    return memory_fingerprint(model, tokenizer, image_processor)


class _PieceTokenizer:
    """A transformers tokenizer as ``tokens.Tokenizer``: pieces of a prompt are encoded without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.adds_bos = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
        self.eos_id = int(tokenizer.eos_token_id)
        self.bos_id = int(tokenizer.bos_token_id) if self.adds_bos else self.eos_id
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.n_tokens = len(tokenizer)
        self.source = Path(str(tokenizer.name_or_path))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def image_mark(self, with_start_and_end: bool) -> tuple[int, ...]:
        """What stands for an image in unexpanded ids."""
        if not with_start_and_end:
            return (IMAGE_PLACEHOLDER,)
        start, end = self._tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
        return (int(start), IMAGE_PLACEHOLDER, int(end))


def _require_one_plain_image(model: Any) -> None:
    name = type(model).__name__
    instead = "Measure the checkpoint with `mir run CHECKPOINT`, which loads original formats itself."
    if "images_aux" in inspect.signature(getattr(model, SPLICE)).parameters:
        raise MirError(f"{name} takes a second, larger view of each image (Mini-Gemini). {instead}")
    ratio = getattr(model.config, "image_aspect_ratio", None)
    if ratio not in (None, "square", "pad"):
        raise MirError(f"{name} has image_aspect_ratio {ratio!r}; 'square' or 'pad' can be measured here. {instead}")
