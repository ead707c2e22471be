"""A loaded LLaVA checkpoint, as the engine and the host tools see it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import attention_of, find_decoder
from mir_plugin.model_adapters.introspection.prepared import PreparedImage, prepared_image, prepared_sample
from mir_plugin.model_adapters.llava.files import LlavaFiles
from mir_plugin.model_adapters.llava.model import LlavaModel
from mir_plugin.model_adapters.llava.preprocess import ClipPreprocessor
from mir_plugin.model_adapters.llava.views import Size
from mir_plugin.model_adapters.prompts.answers import continuation_loglikelihoods, generate_texts
from mir_plugin.model_adapters.prompts.conversation import (
    BARE,
    IMAGE_PLACEHOLDER,
    VICUNA_V1,
    Conversation,
    conversation_named,
    dialogue_of,
    end_ids,
    prompt_ids,
    question_with_marks,
)
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, Prompt, PromptTooLong
from mir_plugin.model_adapters.prompts.sequences import (
    ExpandedPrompt,
    PaddedBatch,
    expand,
    padded,
    padded_batch,
)
from mir_plugin.model_adapters.prompts.tokenizer import Tokenizer
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.shared_parts import FeatureStore, Seen
from mir_plugin.model_adapters.weights.streamed import require_resident
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, LayerWeights

if TYPE_CHECKING:
    from PIL.Image import Image


class LlavaAdapter:
    """A loaded LLaVA checkpoint: the engine's ``ModelAdapter``."""

    def __init__(
        self,
        family: str,
        files: LlavaFiles,
        model: LlavaModel,
        tokenizer: Tokenizer,
        preprocessor: ClipPreprocessor,
        *,
        streamed: LayerWeights | None = None,
        features: FeatureStore | None = None,
        fingerprint: str,
        more_facts: Mapping[str, Any],
    ) -> None:
        """Put the parts together.

        Args:
            fingerprint: of all files that were read, taken before.
        """
        self.family = family
        self.model = model
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.conversation = VICUNA_V1
        self.dialogue = dialogue_of(files.config, model.base_llm.config, tokenizer)
        self.device = model.base_llm.lm_head.weight.device
        self.decoder = replace(find_decoder(model.base_llm), streamed=streamed)
        self._facts = {
            **_facts(family, files, fingerprint, model, tokenizer),
            **_conversation_facts(self.conversation),
            "streamed": streamed is not None,
            **more_facts,
        }
        self._features = features
        self._image_mark = _image_mark(files, tokenizer)
        self._cut_at = _cut_at(files)
        self._n_positions = int(model.base_llm.config.max_position_embeddings)
        self._vocabulary_size = int(model.base_llm.lm_head.weight.shape[0])
        self.n_cut_prompts = 0

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was loaded; whether it has MoCa may have changed since."""
        return {**self._facts, "moca": self.model.moca_positions is not None}

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Prompts with the sample's text as the assistant's answer, cut as in training; images as pixels or features.

        Raises:
            MirError: if a text is empty, nothing of it is left after the cut, or a prompt exceeds the context.
        """
        images = [sample.open_image() for sample in samples]
        wholes = [self._whole(sample, image) for sample, image in zip(samples, images, strict=True)]
        prompts = [self._cut(sample, whole) for sample, whole in zip(samples, wholes, strict=True)]
        padding = padded_batch(prompts, self.device)
        seen, digests = self._seen(samples, images)
        return Batch(
            inputs={"prompts": padding, "sizes": [image.size for image in images], **seen},
            vision_mask=padding.vision_mask,
            text_mask=padded([prompt.text_mask() for prompt in prompts]).to(self.device),
            sample_ids=tuple(sample.sample_id for sample in samples),
            prepared=tuple(
                prepared_sample(prompt.token_ids, image, cut=prompt.n_tokens < whole.n_tokens)
                for prompt, image, whole in zip(prompts, digests, wholes, strict=True)
            ),
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Last hidden states (samples, tokens, d) of one prefill."""
        prompts: PaddedBatch = batch.inputs["prompts"]
        try:
            if "features" in batch.inputs:
                embeddings = self.model.embed_features(prompts, batch.inputs["features"], batch.inputs["sizes"])
            else:
                embeddings = self.model.embed(prompts, batch.inputs["pixel_values"], batch.inputs["sizes"])
        except MirError as error:
            raise MirError(f"sample {', '.join(batch.sample_ids)}: {error}") from error
        with self.bound_to(batch):
            return self.model.prefill(embeddings, prompts.attention_mask)

    @torch.no_grad()
    def text_token_losses(self, batch: Batch) -> Tensor:
        """−log p in nats of every text token given all before it, (text tokens,), row after row."""
        prompts: PaddedBatch = batch.inputs["prompts"]
        # Position t predicts token t + 1; the first text token is predicted at the image's last position.
        predicted = batch.text_mask[:, 1:]
        logits = self.model.logits(self.forward(batch)[:, :-1][predicted])
        return cross_entropy(logits.float(), prompts.token_ids[:, 1:][predicted], reduction="none")

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Tells MoCa layers which positions of this batch are vision tokens; nothing for other checkpoints."""
        return self.model.calibrating(batch.vision_mask)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        num_beams: int = 1,
        until: Sequence[str] = (),
    ) -> list[str]:
        """One answer per prompt, see ``Generator``; none goes beyond the room that the longest prompt leaves.

        A prompt that is longer than training's cut, or than the context, loses its end, as in the original code;
        ``n_cut_prompts`` counts them.
        """
        require_resident(self.decoder)
        if not prompts:
            return []
        wholes = [self._expanded(*self._question(prompt)) for prompt in prompts]
        questions = [whole.cut(self._question_limit) for whole in wholes]
        self.n_cut_prompts += sum(a.n_tokens < b.n_tokens for a, b in zip(questions, wholes, strict=True))
        room = max(1, self._n_positions - max(question.n_tokens for question in questions))
        batch = padded_batch(questions, self.device, left=True)
        embeddings = self.model.embed(batch, *self._pixels(prompts))
        with self.model.calibrating(batch.vision_mask.repeat_interleave(num_beams, dim=0)):
            return generate_texts(
                self.model.base_llm,
                self.tokenizer,
                embeddings,
                batch.attention_mask,
                max_new_tokens=min(max_new_tokens, room),
                temperature=temperature,
                top_p=top_p,
                num_beams=num_beams,
                until=until,
                end_ids=end_ids(self.dialogue, self.tokenizer),
            )

    @torch.no_grad()
    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Log likelihood of each continuation as the answer, and whether it is the greedy one; see ``Generator``."""
        require_resident(self.decoder)
        if len(prompts) != len(continuations):
            raise MirError(f"{len(prompts)} prompts but {len(continuations)} continuations; give one per prompt.")
        if not prompts:
            return []
        pairs = [self._continued(prompt, text) for prompt, text in zip(prompts, continuations, strict=True)]
        batch = padded_batch([whole for whole, _ in pairs], self.device)
        embeddings = self.model.embed(batch, *self._pixels(prompts))
        with self.model.calibrating(batch.vision_mask):
            hidden_states = self.model.prefill(embeddings, batch.attention_mask)
        return continuation_loglikelihoods(self.model.logits, hidden_states, pairs)

    def converse(self, template: str) -> None:
        """Answer prompts in the conversation template of this name.

        Raises:
            MirError: if there is none.
        """
        self.dialogue = conversation_named(template)

    def without_template(self) -> LlavaAdapter:
        """The same loaded checkpoint, its weights shared, with image and text alone in every measured prompt."""
        bare = copy.copy(self)
        bare.conversation = BARE
        bare._facts = {**self._facts, **_conversation_facts(BARE)}  # noqa: SLF001  # a copy of this adapter
        return bare

    def _seen(
        self, samples: Sequence[Sample], images: Sequence[Image]
    ) -> tuple[dict[str, Tensor], tuple[PreparedImage, ...]]:
        """The images as pixels, or as vision-tower features where these are kept for other checkpoints; their digests.

        Digests are those of the pixels in either case.
        """

        def pixels() -> tuple[Tensor, tuple[PreparedImage, ...]]:
            values = self.preprocessor(images)
            of_images = values.split([self.preprocessor.n_views(image.size) for image in images])
            return values.to(self.device), tuple(prepared_image([one]) for one in of_images)

        def seen() -> Seen:
            values, digests = pixels()
            return Seen(self.model.vision_tower(values), digests)

        if self._features is None:
            values, digests = pixels()
            return {"pixel_values": values}, digests
        features, digests = self._features.of(samples, seen)
        return {"features": features.to(self.device)}, digests

    def _pixels(self, prompts: Sequence[Prompt]) -> tuple[Tensor, list[Size]]:
        """The images of all prompts, each with all its views, and their sizes."""
        images = [image for prompt in prompts for image in prompt.images]
        values = self.preprocessor(images).to(self.device) if images else torch.zeros(0, device=self.device)
        return values, [image.size for image in images]

    @property
    def _question_limit(self) -> int:
        """Tokens that a question may have: an answer of one token must fit behind it."""
        return min(self._cut_at or sys.maxsize, self._n_positions - 1)

    def _question(self, prompt: Prompt) -> tuple[str, list[Size]]:
        return self.dialogue.question(question_with_marks(prompt)), [image.size for image in prompt.images]

    def _continued(self, prompt: Prompt, continuation: str) -> tuple[ExpandedPrompt, int]:
        """The prompt with the continuation behind it, and how many tokens the continuation has."""
        if not continuation.strip():
            raise MirError(f"an empty continuation of {prompt.text[:80]!r} has no likelihood. Give it a text.")
        question, sizes = self._question(prompt)
        without = prompt_ids(self.tokenizer, question, len(sizes), self._image_mark)
        answer = self.dialogue.answer.format(continuation.lstrip())
        ids = prompt_ids(self.tokenizer, question + answer, len(sizes), self._image_mark)
        # Not strict: the continuation makes ``ids`` longer, and a merged token may make it differ before that.
        n_common = next((k for k, (a, b) in enumerate(zip(ids, without, strict=False)) if a != b), len(without))
        whole = self._expanded(question + answer, sizes)
        if whole.n_tokens > self._n_positions:
            raise PromptTooLong(
                f"a prompt with its continuation has {whole.n_tokens} tokens, images included, more than the language "
                f"model's {self._n_positions} positions. Shorten it."
            )
        return whole, len(ids) - n_common

    def _whole(self, sample: Sample, image: Image) -> ExpandedPrompt:
        """The prompt with the sample's text as the answer, before the cut."""
        if not sample.text.strip():
            raise MirError(f"sample {sample.sample_id}: its text is empty. Remove the sample or give it a text.")
        text = self.conversation.answered(f"{IMAGE_MARK}\n", sample.text)
        return self._expanded(text, [image.size])

    def _cut(self, sample: Sample, whole: ExpandedPrompt) -> ExpandedPrompt:
        """The prompt as training would have cut it."""
        prompt = whole.cut(self._cut_at)
        if prompt.n_tokens > self._n_positions:
            raise MirError(
                f"sample {sample.sample_id}: its prompt has {prompt.n_tokens} tokens, more than the language model's "
                f"{self._n_positions} positions. Shorten or remove its text."
            )
        if prompt.vision_mask.sum() < whole.vision_mask.sum() or not prompt.text_mask().any():
            raise MirError(
                f"sample {sample.sample_id}: tokenizer_model_max_length {self._cut_at} leaves no text behind the image "
                f"({whole.n_tokens} tokens before the cut). Correct it in config.json."
            )
        return prompt

    def _expanded(self, text: str, sizes: Sequence[Size]) -> ExpandedPrompt:
        """The prompt with as many vision tokens as images of these sizes take."""
        ids = prompt_ids(self.tokenizer, text, len(sizes), self._image_mark)
        if max(ids) >= self._vocabulary_size:
            raise MirError(
                f"{self.tokenizer.source} gives token id {max(ids)}, but the language model has "
                f"{self._vocabulary_size} embeddings. The tokenizer belongs to another model."
            )
        return expand(ids, [self.model.n_rows(size) for size in sizes])


def _cut_at(files: LlavaFiles) -> int | None:
    """Positions after which training cut a prompt; None for no cut. Tokenizers without a limit say 10^30."""
    value = files.config.get("tokenizer_model_max_length")
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 1:
        raise MirError(
            f"{files.checkpoint / 'config.json'} has tokenizer_model_max_length = {value!r}, expected a positive "
            "number of tokens. Correct it, or remove it for no limit."
        )
    return int(min(value, sys.maxsize))


def _image_mark(files: LlavaFiles, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that represent an image before expansion."""
    if not files.config.get("mm_use_im_start_end"):
        return (IMAGE_PLACEHOLDER,)
    start, end = tokenizer.encode("<im_start>"), tokenizer.encode("<im_end>")
    if len(start) != 1 or len(end) != 1:
        raise MirError(
            f"config.json says mm_use_im_start_end, but {tokenizer.source} has no tokens <im_start> and <im_end>. "
            f"Use the tokenizer saved with the checkpoint."
        )
    return (start[0], IMAGE_PLACEHOLDER, end[0])


def _facts(family: str, files: LlavaFiles, fingerprint: str, model: LlavaModel, tokenizer: Tokenizer) -> dict[str, Any]:
    head = model.base_llm.lm_head.weight
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
        **({"notes": dict(files.notes)} if files.notes else {}),
        "checkpoint_fingerprint": fingerprint,
        "source_folders": [str(folder.absolute()) for folder in files.folders],
        "n_layers": len(model.base_llm.model.layers),
        "hidden_size": model.base_llm.config.hidden_size,
        "dtype": dtype_name(head.dtype),
        "attention": attention_of(model.base_llm),
        "device": str(head.device),
    }


def _conversation_facts(conversation: Conversation) -> dict[str, str]:
    return {
        "conversation": conversation.name,
        "prompt_template": conversation.answered(f"{IMAGE_MARK}\n", "{text}"),
    }
