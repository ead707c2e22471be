"""Answers and likelihoods of any Hugging Face model, batched with left padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.inputs import LoadedModel
from mir_plugin.model_adapters.huggingface.prompts import Rendered
from mir_plugin.model_adapters.prompts.generation import PromptTooLong, cut_before

if TYPE_CHECKING:
    from PIL.Image import Image

    from mir_plugin.model_adapters.prompts.generation import Prompt


@torch.no_grad()
def generate_answers(
    loaded: LoadedModel, prompts: Sequence[Prompt], *, max_batch: int | None, until: Sequence[str], **options: Any
) -> list[str]:
    """One answer per prompt, special tokens removed, cut before the first of ``until``.

    Args:
        max_batch: most prompts per forward pass.
        options: of transformers' ``generate``.
    """
    answers: dict[int, str] = {}
    tokenizer = loaded.processor.tokenizer
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for rows in _batches(prompts, max_batch):
        inputs = loaded.inputs(
            [_rendered(loaded, prompts[row]) for row in rows],
            [_images(prompts[row]) for row in rows],
            padding_side="left",
        )
        _require_room(loaded, inputs)
        ids = loaded.model.generate(**inputs, pad_token_id=pad_token_id, top_k=None, **options)
        width = inputs["input_ids"].shape[1]
        if ids.shape[1] >= width and torch.equal(ids[:, :width], inputs["input_ids"]):
            ids = ids[:, width:]
        for row, answer in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            answers[row] = cut_before(answer, until)
    return [answers[row] for row in range(len(prompts))]


@torch.no_grad()
def score_continuations(
    loaded: LoadedModel, prompts: Sequence[Prompt], continuations: Sequence[str], *, max_batch: int | None
) -> list[tuple[float, bool]]:
    """Summed log probability of each continuation, and whether it is what greedy decoding would give."""
    if len(prompts) != len(continuations):
        raise MirError(f"{len(prompts)} prompts with {len(continuations)} continuations; they must be as many.")
    scores: dict[int, tuple[float, bool]] = {}
    n_appended = int(loaded.takes_answer_as_suffix)
    for rows in _batches(prompts, max_batch):
        images = [_images(prompts[row]) for row in rows]
        questions = [_rendered(loaded, prompts[row]) for row in rows]
        whole = [_rendered(loaded, prompts[row], continuations[row]) for row in rows]
        n_question = loaded.inputs(questions, images, padding_side="left")["attention_mask"].sum(dim=1)
        inputs = loaded.inputs(whole, images, padding_side="left")
        _require_room(loaded, inputs)
        logits = loaded.model(**inputs, use_cache=False).logits
        for index, row in enumerate(rows):
            n_tokens = int(inputs["attention_mask"][index].sum() - n_question[index])
            scores[row] = _score(logits[index], inputs["input_ids"][index], n_tokens, n_appended)
    return [scores[row] for row in range(len(prompts))]


def _score(logits: Tensor, ids: Tensor, n_tokens: int, n_appended: int) -> tuple[float, bool]:
    """Score the last ``n_tokens`` of a left-padded row, without the ``n_appended`` that the processor added."""
    if n_tokens <= n_appended:
        raise MirError("a continuation is empty, or merges with its prompt into no token of its own; nothing to score.")
    end = len(ids) - n_appended
    start = len(ids) - n_tokens
    log_probabilities = logits[start - 1 : end - 1].float().log_softmax(dim=-1)
    tokens = ids[start:end]
    total = log_probabilities.gather(1, tokens[:, None]).sum()
    return float(total), bool((log_probabilities.argmax(dim=-1) == tokens).all())


def _batches(prompts: Sequence[Prompt], max_batch: int | None) -> list[list[int]]:
    """Row numbers in batches; prompts with and without images apart, because processors take all or none."""
    with_images = [row for row, prompt in enumerate(prompts) if prompt.images]
    without = [row for row, prompt in enumerate(prompts) if not prompt.images]
    size = max_batch or max(len(prompts), 1)
    return [part[i : i + size] for part in (with_images, without) for i in range(0, len(part), size)]


def _rendered(loaded: LoadedModel, prompt: Prompt, continuation: str | None = None) -> Rendered:
    if continuation is not None and not continuation:
        raise MirError("a continuation is empty; nothing to score.")
    return loaded.prompts.question(prompt.text, len(prompt.images), continuation or "")


def _images(prompt: Prompt) -> list[Image]:
    return [image.convert("RGB") for image in prompt.images]


def _require_room(loaded: LoadedModel, inputs: dict[str, Tensor]) -> None:
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    if loaded.context_length is not None and longest >= loaded.context_length:
        raise PromptTooLong(
            f"a prompt has {longest} tokens, images included, but the model's context is {loaded.context_length}: no "
            "room is left for an answer. Shorten the prompt or use smaller images."
        )
