"""A function in a second process answers as in this one."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from report_boards import board

from mir_plugin.errors import MirError
from mir_plugin.reports import build
from mir_plugin.reports.in_subprocess import aside

from tolerances import HANGS

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="runs in this process elsewhere")


@ON_LINUX
def test_the_function_runs_in_another_process_and_its_result_comes_back():
    with aside(os.getpid) as other:
        assert other() != os.getpid()


def test_an_error_keeps_its_type_and_its_words():
    def refuse(name):
        raise MirError(f"cannot write {name}")

    with pytest.raises(MirError, match="cannot write report"), aside(refuse, "report") as outcome:
        outcome()


@ON_LINUX
def test_a_killed_process_is_an_error_and_not_a_wait():
    with pytest.raises(RuntimeError, match="killed"), aside(lambda: os.kill(os.getpid(), signal.SIGKILL)) as outcome:
        outcome()


@ON_LINUX
def test_an_error_in_the_block_stops_the_function():
    started = time.monotonic()
    with pytest.raises(KeyError), aside(time.sleep, 2 * HANGS):
        raise KeyError("x")
    assert time.monotonic() - started < HANGS


def test_a_large_report_has_the_same_files_in_the_same_order_as_a_small_one(tmp_path, monkeypatch):
    small = build._write(board(), tmp_path / "small", ("csv", "xlsx", "md"))
    monkeypatch.setattr(build, "LARGE", 0)
    large = build._write(board(), tmp_path / "large", ("csv", "xlsx", "md"))
    assert list(large.paths) == list(small.paths)
    assert [path.name for path in large.paths.values()] == [path.name for path in small.paths.values()]
    assert all(path.stat().st_size > 0 for path in large.paths.values())
