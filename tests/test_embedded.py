from __future__ import annotations

import pytest

from mir_plugin.errors import MirError
from mir_plugin.samples.embedded import (
    DIGIT_WORDS,
    digit_questions,
    embedded_samples,
    first_word_is,
    prose_passages,
)


def test_the_embedded_set_has_a_hundred_distinct_pairs_and_one_order():
    samples = embedded_samples()
    assert len(samples) == 100
    assert len({sample.text for sample in samples.samples}) == 100
    assert len({sample.image.tobytes() for sample in samples.samples}) == 100
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
