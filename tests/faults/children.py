"""Commands in forked processes that can be killed: the imports, ten seconds of every ``mir``, are paid only once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tolerances import HANGS

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it, and what it printed."""

    code: int
    printed: str
    seconds: float


class Child:
    """A forked process that runs ``work`` and exits with what a command would exit with."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._started, self._printed = time.monotonic(), b""
        sys.stdout.flush()
        sys.stderr.flush()
        # A pipe, not a file: what a child prints must come through where files cannot be written.
        self._reads, writes = os.pipe()
        # Held back until the child is ready, or it would answer a signal as pytest.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                code = _run(work, writes)
            finally:
                os._exit(code)  # pytest's own ending must not run twice
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writes)
        os.set_blocking(self._reads, False)

    def kill(self, number: signal.Signals, after: float = 0.0) -> None:
        """Send a signal when the child is ``after`` seconds old, unless it has ended by then."""
        while (rest := self._started + after - time.monotonic()) > 0:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(min(rest, 0.002))
        os.kill(self.pid, number)

    def ended(self, deadline: float = HANGS) -> Ended:
        """Wait for the end; a child that does not end is killed and reported."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            seconds = time.monotonic() - self._started
            self._read()
            if pid:
                os.close(self._reads)
                return Ended(os.waitstatus_to_exitcode(status), self._printed.decode(errors="replace"), seconds)
            if seconds > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a child was still running after {seconds:.0f} s:\n{self._printed.decode()}")
            time.sleep(0.002)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reads, 1 << 16):
                self._printed += part


def mir(*arguments: object) -> Callable[[], None]:
    """``mir ARGUMENTS``, for a child."""

    def command() -> None:
        from mir_plugin.cli import main

        sys.argv = ["mir", *map(str, arguments)]
        main()

    return command


def all_of(*steps: Callable[[], object]) -> Callable[[], None]:
    """Several things one after another, for a child."""

    def work() -> None:
        for step in steps:
            step()

    return work


def _run(work: Callable[[], object], printed: int) -> int:
    import torch

    signal.alarm(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    with (
        open(printed, "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            work()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def files_below(folder: Path) -> Sequence[str]:
    """Every file and folder below a folder, by name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
