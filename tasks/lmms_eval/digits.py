"""Functions that `mir_digits.yaml` names. Its CSV lists the questions; the pictures come from scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets

from mir_plugin.samples.embedded import digit_questions, first_word_is

if TYPE_CHECKING:
    from PIL.Image import Image


def with_pictures(listed: datasets.Dataset) -> datasets.Dataset:
    """The listed questions with image, question and answer."""
    known = {question.question_id: question for question in digit_questions("test")}
    chosen = [known[question_id] for question_id in listed["question_id"]]
    columns = {
        "question_id": [question.question_id for question in chosen],
        "image": [question.image for question in chosen],
        "question": [question.question for question in chosen],
        "answer": [question.answer for question in chosen],
    }
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"image": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image]:
    """The picture of the digit."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question alone."""
    return str(doc["question"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1.0 when the response's first word is the answer."""
    return {"exact_match": float(first_word_is(doc["answer"], results[0]))}
