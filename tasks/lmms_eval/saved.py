"""Keeps MIR from the moment it is measured.

lmms-eval writes its files after the last task, and none if one of them raises. So each result goes at once to a file in
the folder where lmms-eval puts the model's results; the same command takes it from there instead of measuring again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import fingerprint, versions
from mir_plugin.processes import Group
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet

FILE_SUFFIX = "_mir.json"


@dataclass(frozen=True)
class Command:
    """What the command line says about the model, and where results go.

    Attributes:
        model, model_args: as given; they choose the processor's settings too, which the weights do not tell.
        output_path: None saves nothing.
    """

    model: str
    model_args: str
    output_path: str | None

    @classmethod
    def of(cls, arguments: Any) -> Command | None:
        """From the parsed arguments that lmms-eval hands to its tasks; None where a program calls it without any."""
        if arguments is None:
            return None
        given = getattr(arguments, "model_args", None)
        return cls(str(arguments.model), str(given or ""), getattr(arguments, "output_path", None))

    def request(self, facts: Mapping[str, Any], config: MirConfig, samples: SampleSet) -> str:
        """Fingerprint of all that a result depends on: command, loaded weights, prompt, protocol, samples, versions."""
        asked = [self.model, self.model_args, dict(facts), dataclasses.asdict(config), samples.fingerprint]
        return fingerprint([*asked, dict(versions())])

    def path(self, request: str) -> Path | None:
        """Where a request's result is kept: the folder in which lmms-eval puts this model's results."""
        if not self.output_path:
            return None
        from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker

        tracker = GeneralConfigTracker()
        tracker.log_experiment_args(
            model_source=self.model,
            model_args=self.model_args,
            system_instruction="",
            chat_template="",
            fewshot_as_multiturn=False,
        )
        return Path(self.output_path) / tracker.model_name_sanitized / f"{request}{FILE_SUFFIX}"


def kept(measure: Callable[[str], MirResult], request: str, path: Path | None, group: Group) -> MirResult:
    """The result of the same request that an earlier run saved, else a new one, which is saved. Collective.

    A file that cannot be written is a warning: the result also goes to lmms-eval's own files.

    Args:
        measure: called with the request.
        path: None neither reads nor writes.
    """
    result = group.broadcast(_earlier(path, request))
    if result is None:
        result = measure(request)
        if path is not None and group.rank == 0:
            try:
                result.save(path)
            except MirError as error:
                logger.warning(f"MIR is not saved before the other tasks have run: {error}")
                path = None
        _remember(f"MIR {result.mir:.4f} of {result.checkpoint} " + _where(path))
    else:
        logger.info(f"MIR {result.mir:.4f} is taken from {path}; delete the file to measure again.")
        _remember(f"MIR {result.mir:.4f} of {result.checkpoint} is in {path}.")
    return result


def _earlier(path: Path | None, request: str) -> MirResult | None:
    if path is None or not path.is_file():
        return None
    try:
        result = MirResult.load(path)
    except MirError as error:
        logger.warning(f"{error} It is measured again.")
        return None
    return result if result.fingerprints.get("request") == request else None


def _where(path: Path | None) -> str:
    if path is None:
        return "was measured but not saved; name --output_path to keep it."
    return f"was saved to {path}; `mir report` reads it, and the same command does not measure it again."


_measured: list[str] = []


def _remember(sentence: str) -> None:
    _measured.append(sentence)


def what_is_measured() -> list[str]:
    """A sentence for each MIR that the evaluation in progress, or the last one if it failed, has measured."""
    return list(_measured)


@contextmanager
def telling_what_is_saved() -> Iterator[None]:
    """Around one evaluation: what ends it in the middle leaves a word on where the MIR measured before is."""
    _measured.clear()
    try:
        yield
    except BaseException:
        for sentence in what_is_measured():
            logger.error(sentence)
        raise
    _measured.clear()
