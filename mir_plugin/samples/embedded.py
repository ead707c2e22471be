"""What works without network and weights: pictures and prose of installed packages, digit questions, micro models."""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Literal

from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample, SampleSet, spread_evenly

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_QUESTION = "Which digit is shown?"
N_EMBEDDED_SAMPLES = 100
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_CROP_PIXELS = 224
_CROP_COLUMNS, _CROP_ROWS = 7, 5
_PASSAGE_CHARACTERS = 320
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
    folder = Path(str(importlib.resources.files("mir_plugin") / "data" / "micro_llava"))
    return tuple(sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-"))))


def embedded_samples(n: int = N_EMBEDDED_SAMPLES, seed: int = 0) -> SampleSet:
    """Crops of photographs that ship inside scikit-learn and matplotlib, with passages of Python's own documentation.

    The 100 pairs are fixed; fewer are a seeded choice of them. Their content follows the installed versions, which are
    recorded, as the fingerprint shows.

    Raises:
        MirError: for n outside 1..100, or if a package was installed without its sample pictures.
    """
    texts = spread_evenly(prose_passages(), N_EMBEDDED_SAMPLES)
    crops = spread_evenly(tuple(_crops()), N_EMBEDDED_SAMPLES)
    pairs = SampleSet(
        samples=tuple(
            Sample(sample_id=f"embedded-{index:03d}", image=crop, text=text)
            for index, (crop, text) in enumerate(zip(crops, texts, strict=True))
        ),
        description={
            "source": "embedded",
            "images": [Path(name).name for _, name in _PHOTOGRAPHS],
            "texts": "pydoc_data.topics",
            "versions": {
                "python": python_version(),
                "scikit-learn": version("scikit-learn"),
                "matplotlib": version("matplotlib"),
            },
        },
    )
    return pairs.choose(n, seed)


@functools.cache
def prose_passages() -> tuple[str, ...]:
    """All passages of prose in the language reference that ships with Python, 320 characters or a sentence more each.

    Tables, grammar and code are left out; a passage ends with a sentence and never spans two topics.
    """
    from pydoc_data.topics import topics

    found = (passage for name in sorted(topics) for passage in _passages(topics[name]))
    return tuple(dict.fromkeys(found))  # the reference repeats itself in places


def _passages(topic: str) -> Iterator[str]:
    gathered = ""
    for paragraph in re.split(r"\n\s*\n", topic):
        if not _is_prose(paragraph):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            gathered = f"{gathered} {sentence}".strip()
            if len(gathered) >= _PASSAGE_CHARACTERS:
                yield gathered
                gathered = ""


def _is_prose(paragraph: str) -> bool:
    plain_start = re.match(r"[A-Z][a-z ]", paragraph) is not None
    letters = sum(character.isalpha() or character in " \n,." for character in paragraph)
    return plain_start and paragraph.rstrip().endswith(".") and letters > 0.95 * len(paragraph)


def _crops() -> Iterator[Image]:
    import PIL.Image

    for package, name in _PHOTOGRAPHS:
        path = _installed_folder(package) / name
        if not path.is_file():
            raise MirError(f"{package} was installed without {name}; install it from its wheel, or give --images.")
        with PIL.Image.open(path) as photograph:
            width, height = photograph.width - _CROP_PIXELS, photograph.height - _CROP_PIXELS
            for row, column in product(range(_CROP_ROWS), range(_CROP_COLUMNS)):
                left, top = column * width // (_CROP_COLUMNS - 1), row * height // (_CROP_ROWS - 1)
                yield photograph.crop((left, top, left + _CROP_PIXELS, top + _CROP_PIXELS))


def _installed_folder(package: str) -> Path:
    """Where a package lies, without the seconds that importing scikit-learn takes."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MirError(
            f"{package} is not installed; install it with mir-plugin's other requirements, or give --images."
        )
    return Path(spec.origin).parent


def _render_digit(grey_levels: object) -> Image:
    """An 8 x 8 array of ink, 0 to 16, as dark strokes on white paper."""
    import numpy as np
    import PIL.Image

    paper = 255 - np.pad(np.asarray(grey_levels), 1) * (255 / 16)
    small = PIL.Image.fromarray(paper.round().astype(np.uint8))
    return small.resize((_DIGIT_PIXELS, _DIGIT_PIXELS), PIL.Image.Resampling.BICUBIC).convert("RGB")
