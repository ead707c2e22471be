"""LLaVA's two stages in miniature: the projector alone learns from captions, then it and the LLM answer questions."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM

from examples.replication.captions import (
    STROKE_QUESTION,
    before_answer,
    captions_of,
    strokes_of,
)
from examples.replication.micro_llava import Parts, load_tokenizer, new_projector
from mir_plugin.samples.embedded import DigitQuestion

IGNORED = -100


@dataclass(frozen=True)
class Pictures:
    """Digits with what a frozen tower sees in them, (digits, patches, width), and what may truly be said of them."""

    digits: Sequence[DigitQuestion]
    features: Tensor
    captions: Sequence[Sequence[str]]

    @classmethod
    def of(cls, digits: Sequence[DigitQuestion], features: Tensor) -> Pictures:
        """Digits with all their true captions."""
        return cls(digits, features, [captions_of(digit) for digit in digits])

    def first(self, n: int) -> Pictures:
        """The first n of them."""
        return Pictures(self.digits[:n], self.features[:n], self.captions[:n])


@dataclass(frozen=True)
class Stage:
    """How long, how fast and from which random numbers a stage learns."""

    n_steps: int
    batch: int
    rate: float
    seed: int


def make_repeatable() -> None:
    """One thread and deterministic kernels, so that one machine always computes the same weights."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def train_projector(
    parts: Parts, pictures: Pictures, stage: Stage, connector: str = "mlp2x_gelu"
) -> Iterator[tuple[int, float, nn.Sequential]]:
    """LLaVA's first stage: only the projector learns, from captions, between a frozen tower and a frozen LLM.

    Yields (step, loss before the step, projector after it); first (0, nan, initial projector). The questions of the
    benchmark are in no caption: answering them is what the language model makes of the aligned picture.
    """
    torch.manual_seed(stage.seed)
    rng = random.Random(stage.seed)
    tokenizer = load_tokenizer(parts.tokenizer_model)
    width = parts.language_model.config.hidden_size
    projector = new_projector(connector, parts.tower.config.hidden_size, width)

    def loss() -> Tensor:
        rows = rng.sample(range(len(pictures.digits)), min(stage.batch, len(pictures.digits)))
        chosen = [rng.choice(pictures.captions[row]) for row in rows]
        return answer_loss(parts.language_model, tokenizer, projector(pictures.features[rows]), "", chosen)

    parts.language_model.requires_grad_(False)
    yield 0, math.nan, projector
    for step, value in optimise(projector, loss, stage.n_steps, stage.rate, "projector"):
        yield step, value, projector


def finetune(parts: Parts, projector: nn.Sequential, pictures: Pictures, stage: Stage) -> tuple[Parts, nn.Sequential]:
    """LLaVA's second stage on copies: projector and language model learn to answer questions about the pictures.

    The same stage asks the same questions in the same order, whichever projector it starts from.
    """
    torch.manual_seed(stage.seed)
    rng = random.Random(stage.seed)
    tokenizer = load_tokenizer(parts.tokenizer_model)
    language_model = copy.deepcopy(parts.language_model).requires_grad_(True)
    projector = copy.deepcopy(projector).requires_grad_(True)

    def loss() -> Tensor:
        rows = rng.sample(range(len(pictures.digits)), stage.batch)
        total = torch.zeros(())
        for ask_digit in (True, False):
            asked = [row for position, row in enumerate(rows) if (position % 2 == 0) == ask_digit]
            digits = [pictures.digits[row] for row in asked]
            question = digits[0].question if ask_digit else STROKE_QUESTION
            answers = [digit.answer if ask_digit else strokes_of(digit) for digit in digits]
            total = total + answer_loss(
                language_model, tokenizer, projector(pictures.features[asked]), question, answers
            )
        return total

    both = nn.ModuleList([language_model, projector])
    for _ in optimise(both, loss, stage.n_steps, stage.rate, "fine-tuning"):
        pass
    return Parts(parts.tokenizer_model, language_model.eval(), parts.tower), projector.eval()


def answer_loss(
    language_model: LlamaForCausalLM,
    tokenizer: SentencePieceProcessor,
    vision: Tensor,
    question: str,
    answers: Sequence[str],
) -> Tensor:
    """Mean loss of the answers' tokens, after their pictures' vision tokens (answers, tokens, d) and the question."""
    before, after = before_answer(f"\0\n{question}").split("\0")
    prefix, prompt = torch.tensor(framed(tokenizer, before, end=False)), tokenizer.encode(after)
    replies = [framed(tokenizer, answer, start=False) for answer in answers]
    labels = padded([[IGNORED] * len(prompt) + reply for reply in replies])
    suffix = padded([prompt + reply for reply in replies]).clamp_min(0)
    embed = language_model.get_input_embeddings()
    parts = (embed(prefix).expand(len(answers), -1, -1), vision, embed(suffix))
    logits = language_model(inputs_embeds=torch.cat(parts, dim=1)).logits
    return next_token_loss(logits[:, -suffix.shape[1] :], labels)


def optimise(
    module: nn.Module,
    loss: Callable[[], Tensor],
    n_steps: int,
    rate: float,
    name: str,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Iterator[tuple[int, float]]:
    """AdamW with three per cent warm-up and cosine decay; yields (step, loss before that step)."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay, betas=betas)
    warm_up = max(1, n_steps * 3 // 100)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / n_steps)),
    )
    for step in tqdm(range(1, n_steps + 1), desc=name, disable=None):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step, value.item()


def framed(tokenizer: SentencePieceProcessor, text: str, start: bool = True, end: bool = True) -> list[int]:
    """Token ids of a text, with the tokens that begin and end a sequence."""
    tokens: list[int] = tokenizer.encode(text, add_bos=start, add_eos=end)
    return tokens


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as one matrix, filled up on the right with the label that no loss counts."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every label but the first of its row."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
