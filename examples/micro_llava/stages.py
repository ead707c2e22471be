"""The training stages of the micro LLaVA: tokenizer, language model, vision tower, then the projector between them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from corpus import dialogues, unseen_prose
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from examples.replication import training
from examples.replication.micro_llava import (
    IMAGE_PIXELS,
    PATCH_PIXELS,
    VISION_LAYER,
    VOCABULARY,
    Parts,
    pixel_values,
    vision_features,
)
from examples.replication.training import (
    IGNORED,
    Pictures,
    Stage,
    framed,
    next_token_loss,
    optimise,
    padded,
)
from mir_plugin.samples.embedded import DIGIT_WORDS, DigitQuestion


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the corpus and the versions of the libraries."""

    seed: int = 0
    language_steps: int = 1000
    prose_batch: int = 4
    prose_tokens: int = 96
    dialogue_batch: int = 16
    language_rate: float = 2e-3
    vision_steps: int = 300
    vision_batch: int = 64
    vision_rate: float = 2e-3
    projector_steps: int = 300
    projector_batch: int = 16
    projector_rate: float = 1e-3


Record = Callable[[float], None]


def train_tokenizer() -> bytes:
    """A SentencePiece BPE model with byte fallback, of the same kind as Llama's."""
    rng = random.Random(0)
    talks = dialogues(rng)
    sentences = [*unseen_prose(), *(" ".join(next(talks)) for _ in range(100))]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_language_model(tokenizer: SentencePieceProcessor, recipe: Recipe, record: Record) -> LlamaForCausalLM:
    """Next-token prediction, half on prose and half on dialogues about described digits."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).train()
    prose = torch.tensor([token for text in unseen_prose() for token in framed(tokenizer, text)])
    talks = dialogues(rng)

    def loss() -> Tensor:
        starts = [rng.randrange(len(prose) - recipe.prose_tokens) for _ in range(recipe.prose_batch)]
        windows = torch.stack([prose[start : start + recipe.prose_tokens] for start in starts])
        rows, labels = [], []
        for prompt, answer in (next(talks) for _ in range(recipe.dialogue_batch)):
            question, reply = framed(tokenizer, prompt, end=False), framed(tokenizer, answer, start=False)
            rows.append(question + reply)
            labels.append([IGNORED] * len(question) + reply)
        reading = next_token_loss(model(input_ids=windows).logits, windows)
        answering = next_token_loss(model(input_ids=padded(rows).clamp_min(0)).logits, padded(labels))
        return reading + answering

    # Llama's own decay. Without it, layers outgrow the embeddings, and vision tokens start no longer than text tokens.
    steps, rate = recipe.language_steps, recipe.language_rate
    for _, value in optimise(model, loss, steps, rate, "language model", weight_decay=0.1, betas=(0.9, 0.95)):
        record(value)
    return _rounded_to_half(model)


def train_vision_tower(digits: Sequence[DigitQuestion], recipe: Recipe, record: Record) -> CLIPVisionModel:
    """Learn to tell digits apart under small shifts, from the class token and from the patches a projector will see.

    Stands for CLIP's pre-training.
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    config = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=48,
        initializer_range=0.1,
    )
    tower = CLIPVisionModel(config)
    heads = nn.ModuleList(nn.Linear(config.hidden_size, len(DIGIT_WORDS)) for _ in range(2))
    pixels = pixel_values(digits)
    answers = torch.tensor([DIGIT_WORDS.index(digit.answer) for digit in digits])

    def loss() -> Tensor:
        rows = rng.sample(range(len(digits)), recipe.vision_batch)
        shifts = (rng.randrange(-2, 3), rng.randrange(-2, 3))
        seen = tower(pixel_values=pixels[rows].roll(shifts, dims=(2, 3)), output_hidden_states=True)
        summaries = (seen.pooler_output, seen.hidden_states[VISION_LAYER][:, 1:].mean(dim=1))
        return sum(cross_entropy(head(summary), answers[rows]) for head, summary in zip(heads, summaries, strict=True))

    with_heads = nn.ModuleList([tower, heads]).train()
    for _, value in optimise(with_heads, loss, recipe.vision_steps, recipe.vision_rate, "vision tower"):
        record(value)
    return _rounded_to_half(tower)


def train_projector(
    parts: Parts, digits: Sequence[DigitQuestion], recipe: Recipe
) -> Iterator[tuple[int, float, nn.Sequential]]:
    """LLaVA's first stage with the recipe's numbers; yields (step, loss before the step, projector after it)."""
    pictures = Pictures.of(digits, vision_features(parts.tower, digits))
    stage = Stage(recipe.projector_steps, recipe.projector_batch, recipe.projector_rate, recipe.seed)
    return training.train_projector(parts, pictures, stage)


def _rounded_to_half(module: nn.Module) -> nn.Module:
    """The module with weights that float16 holds exactly: what is stored is what the projector was trained against."""
    return module.half().float().eval()
