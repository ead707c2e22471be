"""Forced choice in context: two answered examples, then a question whose options are scored by their likelihood."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mir_plugin.engine.progress import progress
from mir_plugin.errors import MirError
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, Generator, Prompt
from mir_plugin.samples.embedded import digit_questions

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED_DIGITS = "embedded digits"
OPTION_LETTERS = "ABCDEFGH"


class ChoiceQuestion(Protocol):
    """A multiple-choice question about one image; ``mir_plugin.samples.embedded.DigitQuestion`` is one."""

    @property
    def question_id(self) -> str:
        """Unique among the questions."""
        ...

    @property
    def image(self) -> Image:
        """What is asked about."""
        ...

    @property
    def question(self) -> str:
        """The user's words, without image mark."""
        ...

    @property
    def options(self) -> Sequence[str]:
        """What the assistant might answer."""
        ...

    @property
    def answer(self) -> str:
        """The right one of ``options``."""
        ...


@dataclass(frozen=True)
class LetteredQuestion:
    """A row of a benchmark's TSV file: the options are part of the question, and their letters are the answers."""

    question_id: str
    image: Image
    question: str
    options: tuple[str, ...]
    answer: str


def in_context_accuracy(
    generator: Generator, questions: Sequence[ChoiceQuestion], *, n_shots: int = 2, seed: int = 0
) -> float:
    """Per cent of the questions whose right answer is the likeliest option after ``n_shots`` answered examples.

    Examples are other questions of the same list, a seeded choice for each question, so that all checkpoints see the
    same prompts. Options compete by the summed log probability of their tokens; nothing is generated and no answer has
    to be parsed.

    Args:
        generator: a loaded checkpoint that takes prompts of ``n_shots`` + 1 images.
        questions: more than ``n_shots``.
    Raises:
        MirError: for too few questions, an answer that is not an option, or prompts longer than the context.
    """
    if len(questions) <= n_shots:
        raise MirError(
            f"{len(questions)} questions; {n_shots + 1} are needed for {n_shots} examples and one to answer."
        )
    for question in questions:
        if question.answer not in question.options:
            raise MirError(
                f"question {question.question_id}: the answer {question.answer!r} is none of its options "
                f"({', '.join(question.options)}). Correct or remove the question."
            )
    n_right = 0
    for number, question in enumerate(progress(questions, "in-context questions", "question")):
        others = [other for index, other in enumerate(questions) if index != number]
        examples = random.Random(f"{seed} {question.question_id}").sample(others, n_shots)
        prompt = few_shot_prompt(examples, question)
        scores = generator.loglikelihood([prompt] * len(question.options), question.options)
        likeliest = max(range(len(scores)), key=lambda index: scores[index][0])
        n_right += question.options[likeliest] == question.answer
    return 100 * n_right / len(questions)


def few_shot_prompt(examples: Sequence[ChoiceQuestion], question: ChoiceQuestion) -> Prompt:
    """Examples with their answers and the question behind them, each with its image, as one user message."""
    answered = [f"{IMAGE_MARK}\n{example.question}\nAnswer: {example.answer}\n\n" for example in examples]
    return Prompt(
        text="".join(answered) + f"{IMAGE_MARK}\n{question.question}\nAnswer:",
        images=tuple(one.image for one in (*examples, question)),
    )


def chosen_questions(path: Path | None, n: int) -> list[ChoiceQuestion]:
    """The first n questions of a TSV file, or of the embedded digits."""
    if n == 0:
        return []
    return list(questions_from_tsv(path, n) if path else digit_questions("test", n))


def about_questions(asked: Sequence[ChoiceQuestion], path: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Description of the in-context questions for ``indicators.json``."""
    return {"source": str(path or EMBEDDED_DIGITS), "n_questions": len(asked), "seed": seed}


def questions_from_tsv(path: Path, n: int | None = None) -> list[LetteredQuestion]:
    """The first n questions of a benchmark in VLMEvalKit's layout; None takes all.

    Columns: ``index``, ``image`` (base64), ``question``, ``A``, ``B``, ... and ``answer`` (a letter), optionally
    ``hint``. Circular copies of a question and questions without image of their own are rows like all others.

    Raises:
        MirError: if the file cannot be read, or a row lacks a column, an image or a right answer; names the row.
    """
    try:
        with _cells_of_any_length(), path.open(encoding="utf-8", newline="") as file:
            rows = list(itertools.islice(csv.DictReader(file, delimiter="\t"), n or None))
    except (OSError, ValueError, csv.Error) as error:
        raise MirError(f"{path} cannot be read as a table with tabs: {error}") from error
    images = {row.get("index"): row.get("image") or "" for row in rows}
    return [_question(row, images, f"{path}, row {number}") for number, row in enumerate(rows, start=2)]


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Allow cells that hold images. The limit belongs to the whole process, so it is restored."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _question(row: dict[str, str], images: dict[str | None, str], place: str) -> LetteredQuestion:
    missing = [name for name in ("index", "image", "question", "A", "B", "answer") if not row.get(name)]
    if missing:
        raise MirError(f"{place}: nothing in column {', '.join(missing)}. See VLMEvalKit's layout of TSV files.")
    letters = tuple(letter for letter in OPTION_LETTERS if row.get(letter))
    if row["answer"] not in letters:
        raise MirError(f"{place}: the answer is {row['answer']!r}; expected one of {', '.join(letters)}.")
    # As in VLMEvalKit, an image cell may hold the index of the row that has the image.
    encoded = images.get(row["image"], row["image"])
    options = [f"{letter}. {row[letter]}" for letter in letters]
    lines = [row[name] for name in ("hint", "question") if row.get(name)]
    return LetteredQuestion(
        row["index"], _decoded(encoded, place), "\n".join([*lines, *options]), letters, row["answer"]
    )


def _decoded(encoded: str, place: str) -> Image:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        image.load()
    # Pillow raises what it likes for damaged and for hostile bytes, also a class of its own for decompression bombs.
    except Exception as error:
        why = "it is none" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise MirError(f"{place}: the image cannot be decoded ({why}). Download the file again.") from error
    return image
