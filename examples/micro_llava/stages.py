"""The training stages of the micro LLaVA: tokenizer, language model, vision tower, then the projector between them."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import sentencepiece
import torch
from corpus import before_answer, captions_of, dialogues, unseen_prose
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mir_plugin.embedded import DIGIT_WORDS, DigitQuestion

IGNORED = -100
VOCABULARY = 768
IMAGE_PIXELS, PATCH_PIXELS = 40, 8
VISION_LAYER = -2  # as in LLaVA: patches of the second to last layer, without the class token


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
    prose = torch.tensor([token for text in unseen_prose() for token in _framed(tokenizer, text)])
    talks = dialogues(rng)

    def loss() -> Tensor:
        starts = [rng.randrange(len(prose) - recipe.prose_tokens) for _ in range(recipe.prose_batch)]
        windows = torch.stack([prose[start : start + recipe.prose_tokens] for start in starts])
        rows, labels = [], []
        for prompt, answer in (next(talks) for _ in range(recipe.dialogue_batch)):
            question, reply = _framed(tokenizer, prompt, end=False), _framed(tokenizer, answer, start=False)
            rows.append(question + reply)
            labels.append([IGNORED] * len(question) + reply)
        reading = _next_token_loss(model(input_ids=windows).logits, windows)
        answering = _next_token_loss(model(input_ids=_padded(rows).clamp_min(0)).logits, _padded(labels))
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
    tokenizer: SentencePieceProcessor,
    language_model: LlamaForCausalLM,
    tower: CLIPVisionModel,
    digits: Sequence[DigitQuestion],
    recipe: Recipe,
) -> Iterator[tuple[int, float, nn.Sequential]]:
    """LLaVA's first stage: only the projector learns, from captions, between a frozen tower and a frozen LLM.

    Yields (step, loss before the step, projector after it); first (0, nan, initial projector). The questions of the
    benchmark are in no caption: answering them is what the language model makes of the aligned picture.
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    width = language_model.config.hidden_size
    projector = nn.Sequential(nn.Linear(tower.config.hidden_size, width), nn.GELU(), nn.Linear(width, width))
    features = vision_features(tower, digits)
    captions = [captions_of(digit) for digit in digits]

    def loss() -> Tensor:
        rows = rng.sample(range(len(digits)), min(recipe.projector_batch, len(digits)))
        chosen = [rng.choice(captions[row]) for row in rows]
        return answer_loss(language_model, tokenizer, projector(features[rows]), "", chosen)

    language_model.requires_grad_(False)
    yield 0, math.nan, projector
    for step, value in optimise(projector, loss, recipe.projector_steps, recipe.projector_rate, "projector"):
        yield step, value, projector


def answer_loss(
    language_model: LlamaForCausalLM,
    tokenizer: SentencePieceProcessor,
    vision: Tensor,
    question: str,
    answers: Sequence[str],
) -> Tensor:
    """Mean loss of the answers' tokens, after their pictures' vision tokens (answers, tokens, d) and the question."""
    before, after = before_answer(f"\0\n{question}").split("\0")
    prefix, prompt = torch.tensor(_framed(tokenizer, before, end=False)), tokenizer.encode(after)
    replies = [_framed(tokenizer, answer, start=False) for answer in answers]
    labels = _padded([[IGNORED] * len(prompt) + reply for reply in replies])
    suffix = _padded([prompt + reply for reply in replies]).clamp_min(0)
    embed = language_model.get_input_embeddings()
    parts = (embed(prefix).expand(len(answers), -1, -1), vision, embed(suffix))
    logits = language_model(inputs_embeds=torch.cat(parts, dim=1)).logits
    return _next_token_loss(logits[:, -suffix.shape[1] :], labels)


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


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at the micro tower's size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_PIXELS}, crop_size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    )


def pixel_values(digits: Sequence[DigitQuestion]) -> Tensor:
    """Pictures as the tower takes them, (digits, 3, pixels, pixels)."""
    pixels: Tensor = image_processor()([digit.image for digit in digits], return_tensors="pt")["pixel_values"]
    return pixels


@torch.no_grad()
def vision_features(tower: CLIPVisionModel, digits: Sequence[DigitQuestion]) -> Tensor:
    """What the projector receives, (digits, patches, width of the tower)."""
    states = tower.eval()(pixel_values=pixel_values(digits), output_hidden_states=True).hidden_states
    patches: Tensor = states[VISION_LAYER][:, 1:]
    return patches


def load_tokenizer(model: bytes) -> SentencePieceProcessor:
    """The tokenizer of a serialised SentencePiece model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _framed(tokenizer: SentencePieceProcessor, text: str, start: bool = True, end: bool = True) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_bos=start, add_eos=end)
    return tokens


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _rounded_to_half(module: nn.Module) -> nn.Module:
    """The module with weights that float16 holds exactly: what is stored is what the projector was trained against."""
    return module.half().float().eval()
