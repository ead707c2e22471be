"""What the micro LLaVA reads and sees while it is trained: prose, dialogues about digits, captions of digits."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from PIL import ImageStat

from mir_plugin.embedded import DIGIT_QUESTION, DIGIT_WORDS, DigitQuestion, embedded_samples

# Vicuna v1, the prompt of LLaVA-1.5 and of the published MIR program.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
STROKES = ("bold", "thin")
STROKE_QUESTION = "Are the strokes bold or thin?"
CAPTIONS = (
    "A handwritten {digit} in {strokes} strokes.",
    "The digit {digit}, written with {strokes} strokes.",
    "This is a {strokes} {digit}.",
    "{digit}, in {strokes} handwriting.",
)
# How dark a page looks whose strokes count as bold: about the median of the training digits.
BOLD_BELOW_BRIGHTNESS = 204.0
SHORTEST_PARAGRAPH = 80  # characters; below lie headings, lists and grammar


def before_answer(user_message: str) -> str:
    """The prompt up to where the assistant's answer begins."""
    return f"{SYSTEM} USER: {user_message} ASSISTANT:"


def unseen_prose() -> list[str]:
    """Paragraphs of Python's language reference for training; none shares a sentence with the embedded samples."""
    from pydoc_data.topics import topics

    measured = " ".join(sample.text for sample in embedded_samples().samples)
    paragraphs = (" ".join(text.split()) for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name]))
    return [paragraph for paragraph in dict.fromkeys(paragraphs) if _is_unseen_prose(paragraph, measured)]


def _is_unseen_prose(paragraph: str, measured: str) -> bool:
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)
    is_prose = len(paragraph) >= SHORTEST_PARAGRAPH and paragraph[0].isupper()
    return is_prose and not any(sentence in measured for sentence in sentences)


def strokes_of(digit: DigitQuestion) -> str:
    """Whether the picture's strokes are bold or thin."""
    brightness: float = ImageStat.Stat(digit.image.convert("L")).mean[0]
    return STROKES[0] if brightness < BOLD_BELOW_BRIGHTNESS else STROKES[1]


def captions_of(digit: DigitQuestion) -> list[str]:
    """Every caption that is true of the picture."""
    return [caption.format(digit=digit.answer, strokes=strokes_of(digit)) for caption in CAPTIONS]


def dialogues(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs about digits described in words; what teaches the language model to read one.

    A description of two to twelve words stands where a picture's tokens will stand: the digit and its strokes,
    repeated and mixed with words that say nothing.
    """
    filler = ("a", "handwritten", "the", "digit", "written", "with", "strokes", "in", "this", "is")
    while True:
        digit, strokes = rng.choice(DIGIT_WORDS), rng.choice(STROKES)
        words = [digit, strokes, *rng.choices((digit, strokes, *filler), k=rng.randrange(11))]
        rng.shuffle(words)
        picture = " ".join(words)
        kind = rng.random()
        if kind < 0.4:
            yield before_answer(f"{picture}\n{DIGIT_QUESTION}"), digit
        elif kind < 0.5:
            yield before_answer(f"{picture}\n{STROKE_QUESTION}"), strokes
        else:
            yield before_answer(f"{picture}\n"), rng.choice(CAPTIONS).format(digit=digit, strokes=strokes)
