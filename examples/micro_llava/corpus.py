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
from mir_plugin.samples.embedded import DIGIT_QUESTION, DIGIT_WORDS
from mir_plugin.samples.sample_set import spread_evenly

SHORTEST_PARAGRAPH = 80  # characters; below lie headings, lists and grammar
N_HELD_OUT, PASSAGE_CHARACTERS = 100, 320


def unseen_prose() -> list[str]:
    """Paragraphs of Python's language reference for training; none shares a sentence with those held out."""
    held_out = " ".join(held_out_prose())
    paragraphs = (" ".join(text.split()) for topic in _topics() for text in _paragraphs(topic))
    return [paragraph for paragraph in dict.fromkeys(paragraphs) if _is_unseen_prose(paragraph, held_out)]


def held_out_prose() -> tuple[str, ...]:
    """A hundred passages of the same reference that no training reads: whole sentences, 320 characters or more."""
    return spread_evenly(tuple(dict.fromkeys(p for topic in _topics() for p in _passages(topic))), N_HELD_OUT)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _paragraphs(topic: str) -> list[str]:
    return re.split(r"\n\s*\n", topic)


def _passages(topic: str) -> Iterator[str]:
    gathered = ""
    for paragraph in _paragraphs(topic):
        if not _is_plain(paragraph):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            gathered = f"{gathered} {sentence}".strip()
            if len(gathered) >= PASSAGE_CHARACTERS:
                yield gathered
                gathered = ""


def _is_plain(paragraph: str) -> bool:
    plain_start = re.match(r"[A-Z][a-z ]", paragraph) is not None
    letters = sum(character.isalpha() or character in " \n,." for character in paragraph)
    return plain_start and paragraph.rstrip().endswith(".") and letters > 0.95 * len(paragraph)


def _is_unseen_prose(paragraph: str, held_out: str) -> bool:
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)
    is_prose = len(paragraph) >= SHORTEST_PARAGRAPH and paragraph[0].isupper()
    return is_prose and not any(sentence in held_out for sentence in sentences)


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
