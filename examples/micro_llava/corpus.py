"""What the micro LLaVA's language model reads while it is trained: prose, and dialogues about digits in words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from examples.replication.captions import (
    CAPTIONS,
    STROKE_QUESTION,
    STROKES,
    before_answer,
)
from mir_plugin.samples.embedded import DIGIT_QUESTION, DIGIT_WORDS, embedded_samples

SHORTEST_PARAGRAPH = 80  # characters; below lie headings, lists and grammar


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
