"""This package's checkpoint adapters as a model of lmms-eval: benchmarks and MIR from one loaded checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import PIL.Image
import torch
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import LOADING, load_options
from mir_plugin.model_adapters import load_adapter
from mir_plugin.model_adapters.prompts.generation import Generator, Prompt, PromptTooLong
from mir_plugin.tasks.generation_arguments import GenerationArguments
from mir_plugin.tasks.lmms_eval.hooks import remember
from mir_plugin.tasks.lmms_eval.measurement import answer
from mir_plugin.tasks.options import OPTIONS

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

MEASURING = tuple(f"mir_{name}" for name in OPTIONS)
LARGEST_LOSS = 1e9
"""Nats of a continuation that cannot be scored: more than any other has, and a number that JSON knows."""
ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class MirModel(lmms):
    """Any checkpoint that ``mir run`` can load.

    ``--model mir_llava --model_args pretrained=DIR,base_llm=DIR,vision_tower=DIR,dtype=…,device=…,device_memory=6GB,
    family=…``: the names of ``LoadOptions``; the family is recognised when not named. ``conv_template`` is the
    conversation template that prompts are answered in, by LLaVA's name; without it the one that fits the base LLM.
    ``mir_samples``, ``mir_n_samples``, ``mir_seed``, ``mir_outliers`` and ``mir_normalize`` choose what the task `mir`
    measures, which has a template of its own.

    A prompt that is longer than the model's context is cut, as in the original code, or gets an empty answer where its
    adapter does not cut; both are counted and said.

    Raises:
        MirError: for an unknown argument, or a checkpoint that cannot be loaded.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: object = None,
        conv_template: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(arguments.keys() - {*LOADING, *MEASURING})
        if unknown:
            known = ", ".join(("pretrained", *LOADING, "conv_template", *MEASURING))
            raise MirError(f"unknown model argument {unknown[0]!r}; known: {known}.")
        if not pretrained:
            raise MirError("no checkpoint given; write --model_args pretrained=CHECKPOINT_DIR.")
        self.pretrained = str(pretrained)
        self.batch_size_per_gpu = _batch_size(batch_size)
        self.mir_options = {name: arguments[f"mir_{name}"] for name in OPTIONS if f"mir_{name}" in arguments}
        self.adapter = load_adapter(Path(self.pretrained), load_options(arguments))
        if conv_template:
            self._use_template(str(conv_template))
        remember(self)

    @property
    def device(self) -> torch.device:
        """Where lmms-eval exchanges counts between processes."""
        return self.adapter.device

    @property
    def batch_size(self) -> int:
        """Prompts per forward pass."""
        return self.batch_size_per_gpu

    def mir(self, requests: Sequence[Instance]) -> list[str]:
        """Measure MIR over all samples asked for; one JSON answer per request."""
        return answer(
            self.adapter, requests, checkpoint=self.pretrained, asked=self, batch_size=self.batch_size_per_gpu
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers in request order. A task's requests with the same generation arguments share batches, longest first.

        Raises:
            MirError: for video or audio, which these checkpoints do not read.
        """
        generator = self._generator()
        answers: dict[int, str] = {}
        n_cut, n_empty = Counter[str](), Counter[str]()
        chosen = [(request.task_name, GenerationArguments.of(request.args[1])) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (chosen[i], -len(requests[i].args[0])))
        with self._progress("answers", len(requests)) as progress:
            for batch in self._batches(order, chosen):
                prompts = [self._prompt(requests[i], visuals_from=requests[i].args[2]) for i in batch]
                task, asked = chosen[batch[0]]
                n_cut_before = getattr(generator, "n_cut_prompts", 0)
                texts = _each_that_fits(prompts, partial(generator.generate, **asked.as_keywords()))
                n_cut[task] += getattr(generator, "n_cut_prompts", 0) - n_cut_before
                for i, text in zip(batch, texts, strict=True):
                    n_empty[task] += text is None
                    text = text or ""
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", (requests[i].args[0], requests[i].args[1]), text)
                progress.update(len(batch))
        _say_too_long(n_cut, requests, "cut to the model's context, as in the original code")
        _say_too_long(n_empty, requests, "longer than the model's context, and answered with nothing")
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Per request the continuation's loss (nats, summed over its tokens) and whether it is the greedy answer.

        A loss, as lmms-eval's own models return: its multiple-choice tasks take the smallest.
        """
        generator = self._generator()
        losses: dict[int, tuple[float, bool]] = {}
        n_unscored = Counter[str]()
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0]))
        with self._progress("likelihoods", len(requests)) as progress:
            for batch in self._batches(order):
                prompts = [self._prompt(requests[i], visuals_from=requests[i].args[2]) for i in batch]
                continuations = [self._continuation(requests[i]) for i in batch]
                scores = _each_that_fits(
                    list(zip(prompts, continuations, strict=True)),
                    lambda some: generator.loglikelihood([prompt for prompt, _ in some], [text for _, text in some]),
                )
                for i, score in zip(batch, scores, strict=True):
                    n_unscored[requests[i].task_name] += score is None
                    losses[i] = (LARGEST_LOSS, False) if score is None else (-score[0], score[1])
                    self.cache_hook.add_partial("loglikelihood", requests[i].args[:2], losses[i])
                progress.update(len(batch))
        _say_too_long(n_unscored, requests, "longer than the model's context, and given no likelihood")
        return [losses[i] for i in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: the original checkpoints were trained on one image and one question per turn."""
        raise MirError(
            f"task {requests[0].task_name!r} is multi-round, which mir_llava does not support. Leave it out."
        )

    def _use_template(self, name: str) -> None:
        if not hasattr(self.adapter, "converse"):
            raise MirError(f"the {self.adapter.family} adapter uses its own template; leave conv_template out.")
        self.adapter.converse(name)

    def _generator(self) -> Generator:
        if not isinstance(self.adapter, Generator):
            raise MirError(f"the {self.adapter.family} adapter cannot generate; run it with --tasks mir only.")
        return self.adapter

    def _batches(self, order: Sequence[int], keys: Sequence[object] | None = None) -> Iterator[list[int]]:
        """Neighbours in ``order`` that share a key, at most ``batch_size`` of them."""
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) == self.batch_size_per_gpu or (keys and keys[i] != keys[batch[0]])):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _progress(self, what: str, total: int) -> tqdm[Any]:
        return tqdm(desc=what, total=total, disable=True if self.rank else None)

    def _document(self, request: Instance) -> Any:
        *_, doc_id, task, split = request.args
        return self.task_dict[task][split][doc_id]

    def _prompt(self, request: Instance, visuals_from: Any) -> Prompt:
        visuals = visuals_from(self._document(request)) if callable(visuals_from) else visuals_from
        return Prompt(str(request.args[0]), tuple(_image(visual, request.task_name) for visual in visuals or ()))

    def _continuation(self, request: Instance) -> str:
        target = request.args[1]
        return str(target(self._document(request)) if callable(target) else target)


def _each_that_fits(
    items: Sequence[ItemT], answer_all: Callable[[Sequence[ItemT]], list[AnswerT]]
) -> list[AnswerT | None]:
    """Answers in one batch, or one by one where an item is too long for the model; None for those that are."""
    try:
        return list(answer_all(items))
    except PromptTooLong:
        if len(items) == 1:
            return [None]
    return [one for item in items for one in _each_that_fits([item], answer_all)]


def _say_too_long(n_of_task: Counter[str], requests: Sequence[Instance], what: str) -> None:
    n_all = Counter(request.task_name for request in requests)
    for task, n in n_of_task.items():
        if n:
            logger.warning(f"{task}: {n} of {n_all[task]} prompts were {what}.")


def _image(visual: Any, task: str) -> PIL.Image.Image:
    if isinstance(visual, PIL.Image.Image):
        return visual
    if isinstance(visual, str | Path) and Path(visual).suffix.lower() in IMAGE_SUFFIXES:
        with PIL.Image.open(visual) as image:
            return image.convert("RGB")
    raise MirError(
        f"task {task!r} passes a {type(visual).__name__} ({str(visual)[:60]!r}); mir_llava accepts images only."
    )


def _batch_size(given: int | str) -> int:
    """Raises MirError for anything but a positive number, such as lmms-eval's "auto"."""
    if str(given).isdecimal() and int(given) > 0:
        return int(given)
    raise MirError(f"--batch_size is {given!r}; mir_llava needs a number, 1 or more.")
