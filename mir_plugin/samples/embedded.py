"""What works without network and weights: photographs, prose, code, digit questions and micro models."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample, SampleSet, spread_evenly

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_QUESTION = "Which digit is shown?"
N_EMBEDDED_SAMPLES = 100
# Crops of one photograph, which lie side by side, get texts from all over the novels: pairs are unrelated.
_TEXT_STRIDE = 37  # no divisor in common with 100, so that every text occurs once
_N_TRAIN_DIGITS = 1297
_DIGIT_PIXELS = 112


@dataclass(frozen=True)
class DigitQuestion:
    """One row of the embedded benchmark.

    Attributes:
        question_id: unique over both splits, and stable.
        image: RGB, 112 x 112 pixels, dark strokes on white.
        question: what to ask; the whole user message besides the image.
        options: the ten number words, in order.
        answer: one of ``options``; an answer is right when its first word is this one, whatever its case.
    """

    question_id: str
    image: Image
    question: str
    options: tuple[str, ...]
    answer: str


def digit_questions(split: Split = "test", n: int | None = None) -> list[DigitQuestion]:
    """Questions about scikit-learn's handwritten digits; chance is 10 %.

    "train" is what the micro models learnt from, "test" is held out: the last 500 of the 1797 digits. ``n``
    takes the first n rows of the split, None all of them.

    Raises:
        MirError: for an unknown split, or more rows than there are (1297 and 500).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = {"train": range(_N_TRAIN_DIGITS), "test": range(_N_TRAIN_DIGITS, len(digits.target))}
    if split not in rows:
        raise MirError(f"split is {split!r}; expected 'train' or 'test'.")
    chosen = rows[split]
    if n is not None and not 0 < n <= len(chosen):
        raise MirError(f"{n} digit questions were asked for; the {split} split has 1 to {len(chosen)}.")
    return [
        DigitQuestion(
            question_id=f"digit-{row:04d}",
            image=_render_digit(digits.images[row]),
            question=DIGIT_QUESTION,
            options=DIGIT_WORDS,
            answer=DIGIT_WORDS[digits.target[row]],
        )
        for row in chosen[:n]
    ]


def first_word_is(answer: str, response: str) -> bool:
    """The benchmark's score: whether the response's first word is the answer, whatever its case and punctuation."""
    word = re.search(r"[a-z]+", response.lower())
    return word is not None and word.group() == answer


def micro_checkpoints() -> tuple[Path, ...]:
    """Folders of the micro LLaVA's checkpoints, in training order; transformers loads them as they are."""
    return tuple(sorted(_data("micro_llava").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-"))))


def embedded_samples(n: int = N_EMBEDDED_SAMPLES, seed: int = 0) -> SampleSet:
    """Crops of photographs paired with passages of novels, all of which ship with this package.

    The 100 pairs are the same bytes everywhere, whatever is installed; fewer are a seeded choice of them. The JPEG
    files keep colour at full resolution, so that every decoder with libjpeg's default arithmetic gives the same pixels
    (libjpeg and libjpeg-turbo, the latter inside every Pillow wheel). Sources and licences: data/embedded/SOURCES.md.

    Raises:
        MirError: for n outside 1..100.
    """
    crops = spread_evenly(photographs(), N_EMBEDDED_SAMPLES)
    texts = spread_evenly(prose_passages(), N_EMBEDDED_SAMPLES)
    mixed = [texts[_TEXT_STRIDE * index % N_EMBEDDED_SAMPLES] for index in range(N_EMBEDDED_SAMPLES)]
    pairs = SampleSet(
        samples=tuple(
            Sample(sample_id=f"embedded-{index:03d}", image=crop, text=text)
            for index, (crop, text) in enumerate(zip(crops, mixed, strict=True))
        ),
        description={"source": "embedded"},
    )
    return pairs.choose(n, seed)


@functools.cache
def photographs() -> tuple[bytes, ...]:
    """All embedded photographs and crops of them, JPEG, 224 x 224 pixels, in the order of their names."""
    return tuple(path.read_bytes() for path in sorted((_data("embedded") / "photographs").glob("*.jpg")))


@functools.cache
def prose_passages() -> tuple[str, ...]:
    """All embedded passages of prose: whole sentences, 320 to 520 characters, in the order of the novels."""
    return _texts("prose.json")


@functools.cache
def code_passages() -> tuple[str, ...]:
    """A hundred passages of Python code, 320 characters or a line more each; comments and blank lines included."""
    return _texts("code.json")


def _texts(name: str) -> tuple[str, ...]:
    return tuple(json.loads((_data("embedded") / name).read_text(encoding="utf-8")))


def _data(name: str) -> Path:
    return Path(str(importlib.resources.files("mir_plugin"))) / "data" / name


def _render_digit(grey_levels: object) -> Image:
    """An 8 x 8 array of ink, 0 to 16, as dark strokes on white paper."""
    import numpy as np
    import PIL.Image

    paper = 255 - np.pad(np.asarray(grey_levels), 1) * (255 / 16)
    small = PIL.Image.fromarray(paper.round().astype(np.uint8))
    return small.resize((_DIGIT_PIXELS, _DIGIT_PIXELS), PIL.Image.Resampling.BICUBIC).convert("RGB")
