"""How a fault case is written, held, and noted for the table that `make test-full` writes.

A case does one thing to an otherwise good run, and says what must come of it: a refusal (one message that names the
file and the remedy, and a non-zero exit) or the right number. ::

    CASES = (
        Case("empty weights", "model.safetensors has no bytes", empty_weights, Refused("model.safetensors", "copy")),
        Case("cmyk image", "the image is saved as CMYK", cmyk_image, Right(same_as_rgb)),
    )

    @each(CASES)
    def test_a_damaged_checkpoint_is_refused(case: Case, bench: Bench) -> None:
        bench.hold("checkpoints", case)
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from faults import table
from hypothesis import HealthCheck, settings

from tolerances import HANGS

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, what it printed on both streams, and the value to compare, if any."""

    exit_code: int
    out: str = ""
    err: str = ""
    value: object = None

    @property
    def message(self) -> str:
        """What the user was told: the error stream from its first ``mir:`` on (before it: progress bars, warnings)."""
        at = re.search(r"^mir: ", self.err, re.MULTILINE)
        return self.err[at.start() :].strip() if at else self.err.strip()


@dataclass(frozen=True)
class Refused:
    """The command must fail with one message that holds all these words: the file's or key's name, and the remedy."""

    words: tuple[str, ...]
    without: tuple[str, ...] = ()

    def __init__(self, *words: str, without: Sequence[str] = ()) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "without", tuple(without))

    def check(self, outcome: Outcome, bench: Bench) -> str:
        """What came out, for the table."""
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.exit_code != 0, f"accepted: {outcome.out}\n{outcome.err}"
        # A mistake in the options themselves is told by the option parser.
        assert f"\n{outcome.err}".count("\nmir: ") + outcome.err.count("Usage: ") == 1, outcome.err
        missing = [word for word in self.words if word not in outcome.message]
        assert not missing, f"{missing} not in: {table.printable(outcome.message)}"
        told = [word for word in self.without if word in outcome.message]
        assert not told, f"{told} in: {outcome.message}"
        return f"exit {outcome.exit_code}: {outcome.message}"


@dataclass(frozen=True)
class Right:
    """The command must succeed, and its ``value`` pass ``check``, which returns what to say in the table."""

    check_value: Callable[[object, Bench], str]

    def check(self, outcome: Outcome, bench: Bench) -> str:
        """What came out, for the table."""
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.exit_code == 0, outcome.err
        return self.check_value(outcome.value, bench)


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        name: unique within its file; the test's id.
        done: what was done, as the table says it.
        act: does it in ``bench.folder`` and runs the command.
        expected: what must come out.
        full: only held with ``--full``.
    """

    name: str
    done: str
    act: Callable[[Bench], Outcome]
    expected: Refused | Right
    full: bool = False


def in_full(*cases: Case) -> tuple[Case, ...]:
    """These only with ``--full``: others of their kind are held always."""
    return tuple(replace(case, full=True) for case in cases)


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrize a test by ``case``; those of the long form only run with ``--full``."""
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two cases with one name: {twice}"
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name, marks=[pytest.mark.full] if case.full else []) for case in cases]
    )


@dataclass
class Bench:
    """Where one case is done: an empty folder, and the ``mir`` command."""

    folder: Path
    properties: list[tuple[str, object]] = field(default_factory=list)

    def mir(self, *arguments: object) -> Outcome:
        """``mir ARGUMENTS`` in this process, as the entry point runs it; a traceback stays visible in ``err``."""
        from mir_plugin.cli import main

        return self.called(main, *arguments)

    def called(self, main: Callable[[], object], *arguments: object) -> Outcome:
        """A command's entry point in this process, with these arguments."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        before = sys.argv
        sys.argv = ["mir", *map(str, arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            except Exception:  # a traceback is an outcome to be judged: cases refuse it
                traceback.print_exc()
                code = 1
            finally:
                sys.argv = before
        return Outcome(code, out.getvalue(), err.getvalue())

    def mir_process(self, *arguments: object, env: Mapping[str, str] | None = None) -> Outcome:
        """``mir ARGUMENTS`` as a program of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "mir_plugin.cli", *map(str, arguments)],
            capture_output=True, text=True, timeout=HANGS, check=False, env={**os.environ, **(env or {})},
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def hold(self, part: str, case: Case) -> None:
        """Do the case, check what came of it, and note it for the table."""
        with _hang_guard():
            outcome = case.act(self)
        self.note(part, case.done, case.expected.check(outcome, self))

    def note(self, part: str, done: str, came_out: str) -> None:
        """A row of the table: what was done, and what came out."""
        self.properties.append((table.PROPERTY, (part, done, table.printable(self.without_paths(came_out)))))

    def without_paths(self, text: str) -> str:
        """The text with this machine's folders shortened, so that the table is the same everywhere."""
        for folder, name in ((self.folder, "…"), (self.folder.resolve(), "…"), (REPOSITORY, "."), (Path.home(), "~")):
            text = text.replace(str(folder), name)
        return text.replace("python -m pytest.mir", "mir")  # how the option parser calls a command run by pytest


@contextlib.contextmanager
def _hang_guard() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"still running after {HANGS} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(n: int) -> settings:
    """The same examples every time; the folder may be shared, as each example writes its file anew."""
    return settings(
        max_examples=n, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
