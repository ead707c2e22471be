"""What host tools ask of a loaded checkpoint besides MIR: answers to prompts, and the likelihood of given answers.

An adapter that offers this fulfils ``Generator`` as well as ``ModelAdapter``; hosts test it with
``isinstance(adapter, Generator)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_MARK = "<image>"


class PromptTooLong(MirError):
    """A prompt has no room in the model's context; others may."""


def images_are_marked(text: str, n_images: int) -> bool:
    """Whether the text says where its images stand; without marks they stand in front.

    Raises:
        MirError: if there are marks, but not as many as images.
    """
    n_marks = text.count(IMAGE_MARK)
    if n_marks not in (0, n_images):
        raise MirError(
            f"a prompt has {n_images} images but {n_marks} {IMAGE_MARK} marks: {text[:80]!r}. Mark all images or none."
        )
    return n_marks > 0


def cut_before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, its blanks as they are: host tools strip what they do not want.

    >>> cut_before(" yes\\n\\nQ: what", ["Q:", "\\n\\n"])
    ' yes'
    """
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=None)]


@dataclass(frozen=True)
class Prompt:
    """One user question.

    The adapter wraps it in its conversation template, so ``text`` holds the question alone. Images stand where the
    text has ``<image>``, in order; those without a mark stand in front of it.

    Attributes:
        text: the question.
        images: none, one or several; any mode, converted to RGB by the adapter.
    """

    text: str
    images: tuple[Image, ...] = ()


@runtime_checkable
class Generator(Protocol):
    """Batched answers of one loaded checkpoint. Greedy answers do not depend on how prompts are batched."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        num_beams: int = 1,
        until: Sequence[str] = (),
    ) -> list[str]:
        """One answer per prompt, special tokens removed, cut before the first of ``until``; all prompts are one batch.

        Blanks around an answer stay, as in lmms-eval's own models.

        ``temperature`` 0 is greedy (or beam) search; above 0 samples, from the smallest set of tokens with
        probability ``top_p`` if given.

        Raises:
            PromptTooLong: if a prompt leaves no room for an answer, for adapters that do not cut it.
            MirError: if marks and images of a prompt disagree.
        """
        ...

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Per pair: summed log probability (nats) of the continuation's tokens as the assistant's answer to the
        prompt, and whether greedy decoding would give exactly these tokens; all pairs are one batch.

        Raises:
            PromptTooLong: if a prompt with its continuation is longer than the context.
            MirError: if lengths differ, a continuation is empty, or marks and images of a prompt disagree.
        """
        ...
