"""This package's checkpoint adapters as a model of VLMEvalKit: benchmarks and MIR from one loaded checkpoint.

Imports nothing of VLMEvalKit at the top: ``vlmeval_hooks`` joins the class with VLMEvalKit's own base class.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import LOADING, load_options
from mir_plugin.model_adapters import load_adapter
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, Generator, Prompt, PromptTooLong
from mir_plugin.tasks.generation_arguments import HANDLED, GenerationArguments

logger = logging.getLogger(__name__)
# The defaults of VLMEvalKit's own LLaVA class.
GENERATION: Mapping[str, Any] = {"max_new_tokens": 2048, "do_sample": False}


class CheckpointModel:
    """Any checkpoint that ``mir run`` can load, answering VLMEvalKit's messages.

    ``--model NAME=DIR,base_llm=DIR,…`` or, in a ``--config`` file, ``{"class": "MirModel", "pretrained": DIR, …}``,
    with the names of ``LoadOptions`` and of generation arguments (``max_new_tokens``, ``temperature``, …).

    Raises:
        MirError: for an unknown argument, or a checkpoint that cannot be loaded.
    """

    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(self, pretrained: str | None = None, **arguments: Any) -> None:
        super().__init__()
        unknown = sorted(arguments.keys() - {*LOADING, *HANDLED})
        if unknown:
            known = ", ".join(("pretrained", *LOADING, *sorted(HANDLED)))
            raise MirError(f"unknown model argument {unknown[0]!r}; known: {known}.")
        if not pretrained:
            raise MirError(
                'no checkpoint given; write --model NAME=CHECKPOINT_DIR, or "pretrained" in the config file.'
            )
        self.pretrained = str(pretrained)
        self.adapter = load_adapter(Path(self.pretrained), load_options(arguments))
        asked = {name: value for name, value in arguments.items() if name in HANDLED}
        self.n_unanswered = 0
        self._generation = GenerationArguments.of({**GENERATION, **_sampling_if_warm(asked)})

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """For multiple choice, as VLMEvalKit's LLaVA classes do."""
        from vlmeval.dataset import DATASET_TYPE

        return dataset is not None and DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict[str, str]]:
        """Hint, question and options, then the request for a letter: the words of VLMEvalKit's LLaVA classes."""
        message = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]  # type: ignore[attr-defined]
        return [*message, {"type": "text", "value": multiple_choice_question(line)}]

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to one message of texts and image paths; nothing, counted and said, where it leaves no room.

        Raises:
            MirError: if the adapter cannot generate.
        """
        if not isinstance(self.adapter, Generator):
            raise MirError(f"the {self.adapter.family} adapter cannot generate; run it with --data MIR only.")
        try:
            return self.adapter.generate([prompt_of(message)], **self._generation.as_keywords())[0]
        except PromptTooLong as error:
            self.n_unanswered += 1
            logger.warning("%s: %s Answered with nothing; such prompts so far: %s.", dataset, error, self.n_unanswered)
            return ""


def multiple_choice_question(line: Mapping[str, Any]) -> str:
    """The question as text; a Chinese one is asked in Chinese for its answer."""
    parts = [str(line[name]) for name in ("hint", "question") if _given(line, name)]
    options = [f"{letter}. {line[letter]}" for letter in string.ascii_uppercase if _given(line, letter)]
    question = "\n".join([*parts, *options])
    chinese = any("\u4e00" <= character <= "\u9fff" for character in question)
    if options:
        request = (
            "请直接回答选项字母。" if chinese else "Answer with the option's letter from the given choices directly."
        )
    else:
        request = "请直接回答问题。" if chinese else "Answer the question directly."
    return f"{question}\n{request}"


def prompt_of(message: Sequence[Mapping[str, str]]) -> Prompt:
    """Images before all text stand in front of it, as in training; others are marked where they stand."""
    types = [part["type"] for part in message]
    first_text = types.index("text") if "text" in types else len(types)
    interleaved = "image" in types[first_text:]
    text = "".join(part["value"] if part["type"] == "text" else IMAGE_MARK if interleaved else "" for part in message)
    return Prompt(text, tuple(_image(part["value"]) for part in message if part["type"] == "image"))


def _image(path: str) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def _given(line: Mapping[str, Any], name: str) -> bool:
    """Whether a row of a table has a value; an empty cell is a NaN, which does not equal itself."""
    return name in line and line[name] is not None and line[name] == line[name]


def _sampling_if_warm(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A temperature above 0 asks for sampling, also where ``do_sample`` is left out."""
    warm = float(asked.get("temperature") or 0) > 0
    return {"do_sample": True, **asked} if warm else dict(asked)
