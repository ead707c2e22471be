"""Answers and likelihoods from a causal language model whose prompts are embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from mir_plugin.model_adapters.prompts.generation import cut_before
from mir_plugin.model_adapters.prompts.sequences import ExpandedPrompt
from mir_plugin.model_adapters.prompts.tokenizer import Tokenizer


class _StopAtText(StoppingCriteria):
    """Ends a row of the batch when its text holds one of the stops."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = (self._tokenizer.decode(row) for row in input_ids.tolist())
        return torch.tensor([any(stop in text for stop in self._stops) for text in texts], device=input_ids.device)


def generate_texts(
    base_llm: Any,
    tokenizer: Tokenizer,
    embeddings: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    num_beams: int,
    until: Sequence[str],
    end_ids: Sequence[int] = (),
) -> list[str]:
    """One answer per left-padded prompt (samples, tokens, d), cut before the first stop in ``until``.

    ``end_ids`` end an answer besides the tokenizer's end of sequence.
    """
    ends = [tokenizer.eos_id, *(end for end in end_ids if end != tokenizer.eos_id)]
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p or 1.0, "top_k": 0} if temperature else {}
    stops = [stop for stop in until if stop]
    ids = base_llm.generate(
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=ends if len(ends) > 1 else tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            **sampling,
        ),
        stopping_criteria=StoppingCriteriaList([_StopAtText(tokenizer, stops)] if stops else []),
    )
    return [cut_before(tokenizer.decode(_before_end(row, ends)), stops) for row in ids.tolist()]


def continuation_loglikelihoods(
    logits_of: Callable[[Tensor], Tensor], hidden_states: Tensor, pairs: Sequence[tuple[ExpandedPrompt, int]]
) -> list[tuple[float, bool]]:
    """Summed log probability of each prompt's last tokens, and whether each of them is the most likely one.

    Args:
        hidden_states: after the final norm, (samples, tokens, d), right-padded.
        pairs: each prompt with its continuation, and the number of tokens of the continuation.
    """
    results: list[tuple[float, bool]] = []
    for states, (whole, n_continuation) in zip(hidden_states, pairs, strict=True):
        start = whole.n_tokens - n_continuation
        targets = whole.token_ids[start:].to(states.device)
        logits = logits_of(states[start - 1 : whole.n_tokens - 1]).float()  # position t predicts token t + 1
        chosen = logits.log_softmax(-1).gather(-1, targets[:, None])
        results.append((float(chosen.sum()), bool((logits.argmax(-1) == targets).all())))
    return results


def _before_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(ids[: next((place for place, token in enumerate(ids) if token in ends), None)])
