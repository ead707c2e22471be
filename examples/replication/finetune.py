"""LLaVA's second stage in miniature: projector and language model learn to answer questions about digits."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from checkpoints import Parts
from corpus import STROKE_QUESTION, strokes_of
from recipes import FineTuning
from stages import answer_loss, load_tokenizer, optimise
from torch import Tensor, nn

from mir_plugin.embedded import DigitQuestion


def finetune(
    parts: Parts,
    projector: nn.Sequential,
    features: Tensor,
    digits: Sequence[DigitQuestion],
    recipe: FineTuning,
) -> tuple[Parts, nn.Sequential]:
    """Copies of both after the same questions in the same order, whichever checkpoint they started from.

    Args:
        features: what the tower sees in the digits, (digits, patches, width).
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    tokenizer = load_tokenizer(parts.tokenizer_model)
    language_model = copy.deepcopy(parts.language_model).requires_grad_(True)
    projector = copy.deepcopy(projector).requires_grad_(True)

    def loss() -> Tensor:
        rows = rng.sample(range(len(digits)), recipe.batch)
        total = torch.zeros(())
        for ask_digit in (True, False):
            asked = [row for position, row in enumerate(rows) if (position % 2 == 0) == ask_digit]
            question = digits[0].question if ask_digit else STROKE_QUESTION
            answers = [digits[row].answer if ask_digit else strokes_of(digits[row]) for row in asked]
            total = total + answer_loss(language_model, tokenizer, projector(features[asked]), question, answers)
        return total

    for _ in optimise(nn.ModuleList([language_model, projector]), loss, recipe.steps, recipe.rate, "fine-tuning"):
        pass
    return Parts(parts.tokenizer_model, language_model.eval(), parts.tower), projector.eval()
