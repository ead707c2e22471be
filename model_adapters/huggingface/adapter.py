"""Any transformers (5 or later) vision-language model, from a checkpoint folder or already loaded by somebody else."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import folder_fingerprint
from mir_plugin.model_adapters.huggingface.answers import generate_answers, score_continuations
from mir_plugin.model_adapters.huggingface.checkpoint import load_model_and_processor, require_allowed_code
from mir_plugin.model_adapters.huggingface.identity import code_elsewhere, identified, image_settings
from mir_plugin.model_adapters.huggingface.inputs import LOGITS_TO_KEEP, LoadedModel, evaluation_mode, takes_argument
from mir_plugin.model_adapters.huggingface.quantization import facts_of, settings_in
from mir_plugin.model_adapters.huggingface.sources import find_sources
from mir_plugin.model_adapters.introspection.decoder import (
    attention_of,
    find_decoder,
    owner_of_layers,
    require_decoder_only,
    unwrapped,
)
from mir_plugin.model_adapters.introspection.image_positions import (
    checked_positions,
    image_token_id,
    require_countable_features,
    text_mask,
    vision_mask,
)
from mir_plugin.model_adapters.introspection.prepared import is_cut, prepared_samples
from mir_plugin.model_adapters.moca.training import has_moca
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.streamed import StreamedLayers, require_resident
from mir_plugin.types import Batch, Decoder

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions
    from mir_plugin.model_adapters.prompts.generation import Prompt
    from mir_plugin.samples.sample_set import Sample

# Model types whose batches were proven to give the numbers of single samples (tests/adapters/test_huggingface.py).
# All others are encoded one by one: a processor may pad images or positions in ways that change results.
PROVEN_IN_BATCHES = frozenset(
    {
        "llava",
        "llava_next",
        "llava_onevision",
        "qwen2_5_vl",
        "qwen3_vl",
        "gemma3",
        "internvl",
        "idefics3",
        "paligemma",
        "blip-2",
        "instructblip",
    }
)


class HuggingFaceAdapter:
    """A transformers model and its processor, as the engine and the host tools see them.

    The model is used as it is: its parameters never change, its train or eval mode only for the length of a pass, and
    every hook comes off.

    Attributes:
        family: name in the adapter table, or what a host calls the model.
        facts: classes, prompt, image token, dtype, and which checkpoint this is at the time of wrapping: wrap a model
            again after training steps.
        device: where the language model's embeddings live.
        decoder: the language model's layers and final norm.
        max_batch: most samples that ``encode`` takes at once; None means any number.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        family: str,
        identity: Mapping[str, Any],
        streamed: StreamedLayers | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            identity: facts that say which checkpoint this is.
        """
        self._loaded = LoadedModel(unwrapped(model), processor)
        require_decoder_only(self._loaded.model)
        require_countable_features(self._loaded.model)
        self._image_token_id = image_token_id(self._loaded.model, processor)
        self.family = family
        self.device: torch.device = self._loaded.device
        self.decoder: Decoder = dataclasses.replace(find_decoder(self._loaded.model), streamed=streamed)
        # Where the language model takes that argument itself, it drops the other positions before its last layers.
        cuts_states = takes_argument(owner_of_layers(self._loaded.model, self.decoder), LOGITS_TO_KEEP)
        can_cut = takes_argument(self._loaded.model, LOGITS_TO_KEEP) and not cuts_states
        self._fewest_logits = {LOGITS_TO_KEEP: 1} if can_cut else {}
        can_pad = getattr(processor.tokenizer, "pad_token_id", None) is not None
        self.max_batch: int | None = None if can_pad and self._loaded.model_type in PROVEN_IN_BATCHES else 1
        self.facts: Mapping[str, Any] = {
            **self._recognised(),
            "streamed": streamed is not None,
            **identity,
        }

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Prompt, ids, pixels and masks of the samples, right-padded. Runs no decoder layer.

        Raises:
            MirError: for more than ``max_batch`` samples, an unreadable image, an empty text, a text that contains the
                model's image token or is longer than the context, or a prompt without image positions.
        """
        if self.max_batch is not None and len(samples) > self.max_batch:
            raise MirError(
                f"{self._loaded.model_type} models are measured one sample at a time, because batches are not proven "
                f"to give the same numbers; got {len(samples)}. Set the batch size to 1."
            )
        prompts = self._loaded.prompts
        for sample in samples:
            if not sample.text.strip():
                raise MirError(f"sample {sample.sample_id}: its text is empty. Remove the sample, then run again.")
            prompts.require_plain(sample.text, f"sample {sample.sample_id}")
        images = [(sample.open_image().convert("RGB"),) for sample in samples]
        try:
            conversations = [prompts.teacher_forced(sample.text) for sample in samples]
            encoded = self._loaded.encoded(conversations, images, padding_side="right")
        except MirError as error:
            raise MirError(f"sample {', '.join(sample.sample_id for sample in samples)}: {error}") from error
        vision = vision_mask(encoded, self._image_token_id)
        texts = text_mask(vision, encoded["attention_mask"])
        self._require_fitting(samples, vision, encoded["attention_mask"])
        ids = encoded["input_ids"]
        cut = [self._is_cut(sample.text, ids[row][texts[row]]) for row, sample in enumerate(samples)]
        return Batch(
            inputs=self._loaded.placed(encoded),
            vision_mask=vision.to(self.device),
            text_mask=texts.to(self.device),
            sample_ids=tuple(sample.sample_id for sample in samples),
            prepared=prepared_samples(encoded, vision, cut=cut),
        )

    def forward(self, batch: Batch) -> Tensor:
        """One prefill without cache; returns the last hidden state after the final norm, (samples, tokens, d).

        Raises:
            MirError: if image features and image positions disagree, or the model cannot take what the processor made.
        """
        last: list[Tensor] = []
        hook = self.decoder.final_norm.register_forward_hook(lambda _, __, output: last.append(output))
        try:
            with self.bound_to(batch), checked_positions(self._loaded.model, batch.vision_mask):
                self._loaded.model(**batch.inputs, use_cache=False, **self._fewest_logits)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, ValueError, RuntimeError) as error:
            if "cuda" in str(error).lower():  # the GPU failed, whatever it was given
                raise
            raise MirError(
                f"sample {', '.join(batch.sample_ids)}: {type(self._loaded.model).__name__} cannot run on what its "
                f"processor made of it ({error}). Check that config.json and the processor's files belong together."
            ) from error
        finally:
            hook.remove()
        return last[-1]

    @torch.no_grad()
    def text_token_losses(self, batch: Batch) -> Tensor:
        """−log p in nats of every text token given all before it, (text tokens,), row after row."""
        with self.bound_to(batch):
            logits: Tensor = self._loaded.model(**batch.inputs, use_cache=False).logits
        # Position t predicts token t + 1; the first text token is predicted at the image's last position.
        predicted = batch.text_mask[:, 1:]
        return cross_entropy(
            logits[:, :-1][predicted].float(), batch.inputs["input_ids"][:, 1:][predicted], reduction="none"
        )

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        """Evaluation mode for the length of the block: a live model that is being trained has dropout switched on."""
        return evaluation_mode(self._loaded.model)

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
        """One answer per prompt; see ``generation.Generator``."""
        require_resident(self.decoder)
        samples = temperature > 0
        with evaluation_mode(self._loaded.model):
            return generate_answers(
                self._loaded,
                prompts,
                max_batch=self.max_batch,
                until=until,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=samples,
                temperature=temperature if samples else None,
                top_p=top_p if samples else None,
            )

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding gives it; see ``generation.Generator``."""
        require_resident(self.decoder)
        with evaluation_mode(self._loaded.model):
            return score_continuations(self._loaded, prompts, continuations, max_batch=self.max_batch)

    def without_template(self) -> HuggingFaceAdapter:
        """The same loaded model with image and text alone in every measured prompt.

        Raises:
            MirError: if the model's prompts are image and text anyway.
        """
        bare = copy.copy(self)
        bare._loaded = dataclasses.replace(self._loaded, bare_prompts=True)  # noqa: SLF001  # a copy of this adapter
        bare.facts = {**self.facts, **bare._prompt_facts()}  # noqa: SLF001
        if bare.facts["prompt_template"] == self.facts["prompt_template"]:
            raise MirError(f"{self._loaded.model_type} models have no conversation template: image and text follow.")
        return bare

    def _prompt_facts(self) -> dict[str, str]:
        prompt = self._loaded.prompts.record
        return {
            "prompt_source": self._loaded.prompts.source,
            "prompt_template": prompt,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        }

    def _recognised(self) -> dict[str, Any]:
        model, processor = self._loaded.model, self._loaded.processor
        return {
            "model_class": type(model).__name__,
            "model_type": self._loaded.model_type,
            "processor_class": type(processor).__name__,
            "image_processor_class": type(processor.image_processor).__name__,
            "n_layers": len(self.decoder.layers),
            "image_settings": image_settings(processor),
            "prompt_has_date": "strftime_now" in str(getattr(processor, "chat_template", "")),
            "dtype": dtype_name(model.dtype),
            "attention": attention_of(model),
            "image_token_id": self._image_token_id,
            "moca": has_moca(model),
            **facts_of(model),
            **self._prompt_facts(),
            "max_batch": self.max_batch,
        }

    def _is_cut(self, text: str, text_ids: Tensor) -> bool:
        tokenizer = self._loaded.processor.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in text_ids:  # letters that it does not know are missing, too
            return False
        return is_cut(text, str(tokenizer.decode(text_ids, skip_special_tokens=True)))

    def _require_fitting(self, samples: Sequence[Sample], vision: Tensor, attention_mask: Tensor) -> None:
        limit = self._loaded.context_length
        for sample, n_tokens, n_vision in zip(
            samples, attention_mask.sum(1).tolist(), vision.sum(1).tolist(), strict=True
        ):
            if limit is not None and n_tokens > limit:
                raise MirError(
                    f"sample {sample.sample_id}: prompt, image and text have {n_tokens} tokens, but the model's "
                    f"context is {limit}. Shorten the text by {n_tokens - limit} tokens or remove the sample."
                )
            if not n_vision:
                raise MirError(
                    f"sample {sample.sample_id}: its prompt holds no position of the image token (id "
                    f"{self._image_token_id}). The processor and the model's configuration disagree about that id."
                )


def load(folder: CheckpointFolder, options: LoadOptions) -> HuggingFaceAdapter:
    """Load a checkpoint folder in the Hugging Face format; nothing is downloaded, no code of the folder runs unasked.

    Raises:
        MirError: as ``find_sources``, ``load_model_and_processor`` and ``from_loaded``, or if remote code would have to
            run.
    """
    require_allowed_code(folder, options)
    sources = find_sources(folder, options)
    before = folder_fingerprint(sources.folders)
    loaded = load_model_and_processor(sources, options)
    code = code_elsewhere(folder.path, loaded.model, loaded.processor)
    folders = [*sources.folders, *code]
    identity = {
        **({"notes": dict(loaded.notes)} if loaded.notes else {}),
        "checkpoint_fingerprint": folder_fingerprint(folders) if code else before,
        "source_folders": [str(place) for place in folders],
        **facts_of(loaded.model, stored=settings_in(sources)),
    }
    return HuggingFaceAdapter(
        loaded.model, loaded.processor, family="huggingface", identity=identity, streamed=loaded.streamed
    )


def from_loaded(
    model: Any,
    processor: Any,
    *,
    family: str = "huggingface",
    checkpoint: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> HuggingFaceAdapter:
    """Wrap a model that is already in memory: a host tool's, or the live one of a training run.

    Args:
        model: a transformers vision-language model, possibly inside DistributedDataParallel, PEFT or torch.compile.
        processor: its processor, with ``tokenizer`` and ``image_processor``.
        family: name to record.
        checkpoint: folder or hub name that the weights came from, if they may still be its own. Where every parameter
            holds what is stored there, the model counts as that checkpoint; else its values alone say what it is.
        identity: facts that say which checkpoint this is, where they are known or not needed; None reads the model's
            parameters for them.
    Raises:
        MirError: if decoder layers, final norm or image features cannot be found, or parameters are partitioned.
    """
    inner = unwrapped(model)
    _require_whole_parameters(inner)
    identity = identified(inner, processor, checkpoint) if identity is None else identity
    return HuggingFaceAdapter(model, processor, family=family, identity=identity)


def _require_whole_parameters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MirError(
                f"parameter {name!r} is offloaded, so layers cannot be run one by one. Load the model on one device "
                "(device_map=cpu or cuda), or measure the saved checkpoint: `mir run CHECKPOINT`."
            )
        if hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") or parameter.numel() == 0:
            raise MirError(
                f"parameter {name!r} is partitioned between processes (ZeRO stage 3, FSDP or tensor parallelism), so "
                "layers cannot be run one by one. Measure the saved checkpoint instead: `mir run CHECKPOINT`."
            )
