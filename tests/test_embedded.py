from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import mir_plugin
from mir_plugin.errors import MirError
from mir_plugin.samples.embedded import (
    DIGIT_WORDS,
    code_passages,
    digit_questions,
    embedded_samples,
    first_word_is,
    photographs,
    prose_passages,
)
from mir_plugin.samples.sample_set import Sample

DATA = Path(mir_plugin.__file__).parent / "data" / "embedded"


def test_the_embedded_samples_are_the_recorded_bytes():
    """What every documented value on embedded samples was measured on; a change goes first in CHANGELOG.md."""
    assert embedded_samples().fingerprint == "5d7c95da0fa985228f98ab51b74cdda913a4245a92882509d755c0659e625e79"
    assert _digest(*photographs()) == "3e88280126dad592becccc0af1f8f8489f214550071d4414e5008eda4ab6de35"
    assert (
        _digest(*map(str.encode, prose_passages()))
        == "6b2afa0c9aa159d9e680c0da3be590e57f8fbe2d623b222e2bfc503c23ebc775"
    )
    assert (
        _digest(*map(str.encode, code_passages())) == "5c6e679ab15473a8c30a4ef32845226bc1bf9474949000fa429f9150aabeed42"
    )


def test_the_photographs_decode_to_the_recorded_pixels():
    pixels = (
        Sample(str(number), photograph, "text").open_image().tobytes()
        for number, photograph in enumerate(photographs())
    )
    assert _digest(*pixels) == "4a64e20fbca7632d6c0f611a55eb3f0f53fca5c7257ef3a3c268cd6e7e991d5a"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_there_are_more_contents_than_one_measurement_takes():
    """`mir robustness` needs texts that were not measured, for its pages of print."""
    assert len(set(photographs())) == len(photographs()) >= 120
    assert len(set(prose_passages())) == len(prose_passages()) >= 250


def test_every_photograph_has_its_author_and_licence_beside_it():
    listed = set(re.findall(r"^\| ([a-z]+) \|", (DATA / "SOURCES.md").read_text("utf-8"), flags=re.MULTILINE)) - {
        "name",
        "passages",
    }
    assert {path.name.split("-")[0] for path in (DATA / "photographs").iterdir()} == listed


def test_the_embedded_set_has_a_hundred_distinct_pairs_and_one_order():
    samples = embedded_samples()
    assert len(samples) == 100
    assert len({sample.text for sample in samples.samples}) == 100
    assert len({sample.open_image().tobytes() for sample in samples.samples}) == 100
    assert samples.fingerprint == embedded_samples().fingerprint


def test_fewer_embedded_samples_are_a_seeded_choice():
    few = embedded_samples(n=7, seed=1)
    everything = embedded_samples().samples
    assert [s.text for s in few.samples] == [everything[index].text for index in few.description["choice"]]
    with pytest.raises(MirError, match=r"101 samples.* 100"):
        embedded_samples(n=101)


def test_passages_are_sentences_of_prose():
    for passage in prose_passages():
        assert (
            len(passage) >= 320 and passage[0].isupper() and passage.endswith((".", "!", "?")) and ">>>" not in passage
        )


def test_splits_of_the_digits_do_not_overlap():
    train, test = digit_questions("train"), digit_questions("test")
    assert (len(train), len(test)) == (1297, 500)
    assert not {q.question_id for q in train} & {q.question_id for q in test}


def test_every_digit_is_asked_for_with_dark_strokes_on_white():
    questions = digit_questions("test")
    assert {question.answer for question in questions} == set(DIGIT_WORDS)
    assert all(question.image.getpixel((0, 0)) == (255, 255, 255) for question in questions)
    assert all(question.image.convert("L").getextrema()[0] < 32 for question in questions)


@pytest.mark.parametrize(("split", "n"), [("test", 0), ("test", 501), ("validation", None)])
def test_impossible_requests_for_digits_are_errors(split, n):
    with pytest.raises(MirError):
        digit_questions(split, n)


@pytest.mark.parametrize(
    ("response", "right"),
    [("seven", True), (" Seven.", True), ("seven, bold", True), ("a seven", False), ("seventeen", False), ("", False)],
)
def test_the_first_word_decides(response, right):
    assert first_word_is("seven", response) is right
