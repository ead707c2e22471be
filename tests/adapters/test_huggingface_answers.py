"""Answers and likelihoods of Hugging Face models: batched with left padding, they equal those of single prompts."""

from __future__ import annotations

import functools

import numpy as np
import PIL.Image
import pytest
import torch
from adapters.tiny_models import TINY_MODELS

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.prompts.generation import Generator, Prompt

pytestmark = pytest.mark.slow

FAMILIES = sorted(TINY_MODELS)


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


PROMPTS = (
    Prompt("What is it?", (picture(60, 40, 0),)),
    Prompt("What colour has the largest of the things that are shown here?", (picture(30, 70, 1),)),
    Prompt("Look: <image> and say.", (picture(32, 32, 2),)),
    Prompt("Is it?", (picture(20, 20, 3),)),
)
CONTINUATIONS = ("yes", "no way at all", " B", "x")


@functools.cache
def adapter(family: str) -> HuggingFaceAdapter:
    tiny = TINY_MODELS[family]()
    return from_loaded(tiny.model, tiny.processor)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_the_same_in_batches_of_one_and_four(family: str) -> None:
    together = adapter(family).generate(PROMPTS, max_new_tokens=6)
    singly = [adapter(family).generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert together == singly
    assert any(together)


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_the_same_in_batches_of_one_and_four(family: str) -> None:
    together = adapter(family).loglikelihood(PROMPTS, CONTINUATIONS)
    singly = [
        adapter(family).loglikelihood([prompt], [continuation])[0]
        for prompt, continuation in zip(PROMPTS, CONTINUATIONS, strict=True)
    ]
    for (batched, greedy), (alone, greedy_alone) in zip(together, singly, strict=True):
        assert batched == pytest.approx(alone, abs=1e-3)  # sums of ten log probabilities near -3, in float32
        assert greedy == greedy_alone


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
def test_a_likelihood_is_the_sum_over_the_tokens_of_the_continuation_alone(family: str) -> None:
    """Every byte is one token in these vocabularies, so all continuations of one character exhaust the letters."""
    of = adapter(family)
    vocabulary = [chr(code) for code in range(33, 127)]
    [prompt] = PROMPTS[:1]
    singles = of.loglikelihood([prompt] * len(vocabulary), [f" {letter}" for letter in vocabulary])
    space = of.loglikelihood([prompt], [" "])[0][0]
    total = torch.tensor([score for score, _ in singles]).logsumexp(0)
    assert float(total) < space  # p(space, any of these letters) < p(space)
    best = max(range(len(vocabulary)), key=lambda index: singles[index][0])
    both = of.loglikelihood([prompt], [f" {vocabulary[best]}!"])[0][0]
    assert both < singles[best][0] < space


def test_a_greedy_answer_is_recognised_as_greedy_and_another_is_not() -> None:
    tiny = TINY_MODELS["llava"]()
    with torch.no_grad():  # always answer "A": a bias through the last norm would do less visibly
        tiny.model.lm_head.weight.zero_()
        tiny.model.lm_head.weight[tiny.processor.tokenizer.convert_tokens_to_ids("A")] = 1e-3
        tiny.model.model.language_model.norm.weight.zero_()
        tiny.model.lm_head.bias = torch.nn.Parameter(tiny.model.lm_head.weight.sum(1))
    of = from_loaded(tiny.model, tiny.processor)
    [(_, greedy), (_, other)] = of.loglikelihood([PROMPTS[0]] * 2, ["A", "B"])
    assert of.generate(PROMPTS[:1], max_new_tokens=3) == ["AAA"]
    assert not other
    assert not greedy  # a space stands between "ASSISTANT:" and the answer, and this model never says one


def test_prompts_with_and_without_images_may_share_a_call_and_answers_keep_their_order() -> None:
    mixed = [PROMPTS[0], Prompt("No picture here."), PROMPTS[1]]
    answers = adapter("llava").generate(mixed, max_new_tokens=5)
    assert answers == [adapter("llava").generate([prompt], max_new_tokens=5)[0] for prompt in mixed]


def test_answers_end_before_the_first_stop_mark() -> None:
    [whole] = adapter("llava").generate(PROMPTS[:1], max_new_tokens=6)
    assert adapter("llava").generate(PROMPTS[:1], max_new_tokens=6, until=("nowhere", whole[2])) == [
        whole[: whole.index(whole[2])]
    ]


def test_every_adapter_is_a_generator() -> None:
    assert isinstance(adapter("llava"), Generator)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("<image> and <image>", (picture(8, 8, 0),)), "1 images but 2 <image> marks"),
        (Prompt("x" * 2000, (picture(8, 8, 0),)), "no room is left for an answer"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_an_error(prompt: Prompt, message: str) -> None:
    with pytest.raises(MirError, match=message):
        adapter("llava").generate([prompt], max_new_tokens=4)


def test_an_empty_continuation_is_an_error() -> None:
    with pytest.raises(MirError, match="continuation is empty"):
        adapter("llava").loglikelihood(PROMPTS[:1], [""])


def test_pairs_of_different_lengths_are_an_error() -> None:
    with pytest.raises(MirError, match="4 prompts with 1 continuations"):
        adapter("llava").loglikelihood(PROMPTS, ["yes"])
