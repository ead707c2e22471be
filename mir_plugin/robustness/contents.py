"""What is varied in a robustness study: kinds of images, kinds of texts, and pairs whose text belongs to the image.

The embedded kinds need no network: crops of photographs, handwritten digits and pages of print; prose and program code.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mir_plugin.errors import MirError
from mir_plugin.samples.embedded import (
    DIGIT_WORDS,
    N_EMBEDDED_SAMPLES,
    DigitQuestion,
    Split,
    code_passages,
    digit_questions,
    embedded_samples,
    prose_passages,
)
from mir_plugin.samples.sample_set import (
    Sample,
    SampleSet,
    seeded_choice,
    spread_evenly,
)
from mir_plugin.samples.sources import (
    from_folders,
    image_files,
    read_text,
    text_files,
)

if TYPE_CHECKING:
    from PIL.Image import Image

DIGIT_CAPTION = "The picture shows a handwritten digit in dark ink on white paper. The digit is a {}."
_PAGE_PIXELS, _PAGE_FONT_PIXELS, _PAGE_COLUMNS = 224, 14, 32


@dataclass(frozen=True)
class Images:
    """One kind of image content; ``images`` as in ``Sample.image``."""

    name: str
    images: tuple[Path | bytes | Image, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Texts:
    """One kind of text content."""

    name: str
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Pairs:
    """Images with a text each that belongs to it."""

    name: str
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)


@functools.cache
def embedded_images() -> tuple[Images, ...]:
    """A hundred images of each embedded kind: those of the embedded samples first."""
    digits = [digit.image for digit in _cycling_digits("test", N_EMBEDDED_SAMPLES)]
    return (
        Images("photographs", tuple(sample.image for sample in embedded_samples().samples)),
        Images("digits", tuple(digits)),
        Images("pages", tuple(map(_page, _passages_not_measured()))),
    )


@functools.cache
def embedded_texts() -> tuple[Texts, ...]:
    """A hundred texts of each embedded kind, about equally long: those of the embedded samples first."""
    return (
        Texts("prose", tuple(sample.text for sample in embedded_samples().samples)),
        Texts("code", code_passages()),
    )


@functools.cache
def embedded_pairs(split: Split = "test") -> Pairs:
    """Handwritten digits, each with a sentence that names it; neighbours are different digits."""
    digits = _cycling_digits(split, N_EMBEDDED_SAMPLES)
    captions = [Sample(digit.question_id, digit.image, DIGIT_CAPTION.format(digit.answer)) for digit in digits]
    return Pairs("digits and captions", tuple(captions))


def folder_images(folder: Path) -> Images:
    """A folder's images in natural order, under the folder's name."""
    return Images(folder.absolute().name, tuple(image_files(folder)))


def folder_texts(folder: Path) -> Texts:
    """A folder's texts in natural order, under the folder's name."""
    return Texts(folder.absolute().name, tuple(read_text(path) for path in text_files(folder)))


def folder_pairs(images_dir: Path, texts_dir: Path) -> Pairs:
    """The i-th image with the i-th text of two folders, as ``mir run --images --texts`` pairs them."""
    return Pairs(images_dir.absolute().name, from_folders(images_dir, texts_dir).samples)


def paired(images: Images, texts: Texts, n: int, seed: int) -> SampleSet:
    """n images of one kind with n texts of another, each a seeded choice that keeps its order.

    Raises:
        MirError: if there are fewer of either.
    """
    for kind in (images, texts):
        _require(kind, n)
    chosen_images = [images.images[index] for index in seeded_choice(len(images), n, seed)]
    chosen_texts = [texts.texts[index] for index in seeded_choice(len(texts), n, seed)]
    return SampleSet(
        tuple(
            Sample(f"{images.name} + {texts.name} {index:03d}", image, text)
            for index, (image, text) in enumerate(zip(chosen_images, chosen_texts, strict=True))
        ),
        {"source": "robustness", "images": images.name, "texts": texts.name, "n_samples": n, "seed": seed},
    )


def belonging(pairs: Pairs, n: int) -> SampleSet:
    """The first n pairs as they are."""
    _require(pairs, n)
    return SampleSet(pairs.samples[:n], {"source": "robustness", "pairs": pairs.name, "n_samples": n})


def moved(pairs: Pairs, n: int) -> SampleSet:
    """The same images and the same texts, every text one image further on."""
    samples = belonging(pairs, n).samples
    if n < 2:
        raise MirError("a single pair has no other text to swap with. Use at least 2 samples.")
    texts = [samples[-1].text, *(sample.text for sample in samples[:-1])]
    return SampleSet(
        tuple(Sample(sample.sample_id, sample.image, text) for sample, text in zip(samples, texts, strict=True)),
        {"source": "robustness", "pairs": pairs.name, "texts": "moved by one", "n_samples": n},
    )


def _cycling_digits(split: Split, n: int) -> list[DigitQuestion]:
    """n digits 0, 1, … 9, 0, …, so that no digit follows itself, not even the last the first."""
    by_answer: dict[str, list[DigitQuestion]] = {word: [] for word in DIGIT_WORDS}
    for digit in digit_questions(split):
        by_answer[digit.answer].append(digit)
    return [by_answer[DIGIT_WORDS[index % 10]][index // 10] for index in range(n)]


def _passages_not_measured() -> tuple[str, ...]:
    measured = {sample.text for sample in embedded_samples().samples}
    return spread_evenly([text for text in prose_passages() if text not in measured], N_EMBEDDED_SAMPLES)


def _page(text: str) -> Image:
    """A passage as a page of print."""
    import textwrap

    import PIL.Image
    from PIL import ImageDraw, ImageFont

    page = PIL.Image.new("RGB", (_PAGE_PIXELS, _PAGE_PIXELS), "white")
    lines = "\n".join(textwrap.wrap(text, _PAGE_COLUMNS))
    ImageDraw.Draw(page).multiline_text((8, 8), lines, "black", ImageFont.load_default(_PAGE_FONT_PIXELS))
    return page


def _require(kind: Images | Texts | Pairs, n: int) -> None:
    if not 1 <= n <= len(kind):
        raise MirError(f"{n} samples were asked for, but {kind.name} has {len(kind)}. Ask for fewer: --n-samples.")
