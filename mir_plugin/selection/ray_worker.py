"""What one Ray worker of a sweep does: measures the checkpoints it is handed and returns results instead of files."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.redaction import without_secrets
from mir_plugin.indicators.file import INDICATORS_NAME
from mir_plugin.results import PARTIAL_NAME, RESULT_NAME
from mir_plugin.selection.sweep import Measured
from mir_plugin.selection.sweep_measuring import SweepMeasuring

# In the folder of a checkpoint: what an earlier attempt left, and what measuring adds.
KEPT_FILES = (RESULT_NAME, PARTIAL_NAME, INDICATORS_NAME)
# Of a machine, not of a checkpoint: another worker may well measure it.
MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass(frozen=True)
class Task:
    """A checkpoint to measure, the texts of the files that earlier attempts left, by name, and how many samples."""

    checkpoint: Path
    files: Mapping[str, str]
    n_samples: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a task.

    Attributes:
        measured: None where it failed.
        files: texts of further files for the checkpoint's folder, by name.
        seconds: from loading on.
        error: why it failed, for the user.
        traceback: of an error that nobody foresaw.
        machine_fails: whether the error is one of the worker's machine.
    """

    measured: Measured | None
    files: Mapping[str, str]
    seconds: float
    error: str | None = None
    traceback: str | None = None
    machine_fails: bool = False


class CheckpointWorker:
    """Lives in a process of its own, which keeps loaded what the next checkpoint may share."""

    def __init__(self, measuring: SweepMeasuring, folder: str, n_threads: int) -> None:
        """Get ready.

        Args:
            measuring: of the driver; its samples are in memory.
            folder: where the driver runs, so that relative paths mean the same; skipped where it does not exist.
            n_threads: processor cores that this worker may use.
        """
        import torch

        with contextlib.suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(n_threads)
        self._measuring = measuring
        self._journal: Path | None = None

    def ready(self) -> str:
        """The name of the machine."""
        return os.uname().nodename

    def measure(self, task: Task) -> Answer:
        """Measure one checkpoint; every failure is part of the answer."""
        started = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory(prefix="mir-") as folder:
                for name, text in task.files.items():
                    (Path(folder) / name).write_text(text, encoding="utf-8")
                self._journal = Path(folder) / PARTIAL_NAME
                measured = self._measuring(task.checkpoint, Path(folder) / RESULT_NAME, task.n_samples)
                indicators = Path(folder) / INDICATORS_NAME
                files = {INDICATORS_NAME: indicators.read_text(encoding="utf-8")} if indicators.is_file() else {}
            return Answer(measured, files, time.perf_counter() - started)
        except Exception as error:  # one checkpoint must not cost the worker
            known = isinstance(error, MirError)
            reason = without_secrets(str(error) if known else f"{type(error).__name__}: {error}")
            trace = None if known else without_secrets(traceback.format_exc())
            seconds = time.perf_counter() - started
            return Answer(None, {}, seconds, reason, trace, machine_fails=_is_of_machine(error))
        finally:
            self._journal = None

    def journal(self) -> str:
        """The layers finished so far, as the journal of a local run holds them; empty between checkpoints."""
        with contextlib.suppress(OSError, AttributeError):  # not begun, or just ended
            return self._journal.read_text(encoding="utf-8")  # type: ignore[union-attr]
        return ""


def _is_of_machine(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            return True
        error = error.__cause__
    return False
