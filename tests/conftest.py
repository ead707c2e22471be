"""What every test run reports besides its failures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded_runs import LLAVA, MINI_GEMINI, SHAREGPT4V, recorded_runs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many recorded runs were at hand: a parity test that never runs must not look like one that passes."""
    n_cases = len(LLAVA) + len(SHAREGPT4V) + len(MINI_GEMINI)
    runs = list(recorded_runs())
    n_present = len({run.folder for run in runs})
    terminalreporter.write_line(f"golden cases at hand: {n_present} of {n_cases}, {len(runs)} recorded MIR runs")


@pytest.fixture(autouse=True)
def one_environment() -> Iterator[None]:
    """datasets puts a copy in the place of os.environ, but rich and others keep the first one they saw."""
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003 - the very object is wanted back


@pytest.fixture(autouse=True)
def signals_as_in_a_shell() -> Iterator[None]:
    """A job in the background ignores Ctrl-C, and so would all it starts; ``main`` handles SIGTERM in its own way."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# What loads checkpoints, trains, or starts other programs; `make unit` leaves it out.
SLOW = (
    "adapters",
    "faults",
    "hosts",
    "parity",
    "test_cli.py",
    "test_distributed.py",
    "test_docs_run.py",
    "test_figures.py",
    "test_indicators.py",
    "test_micro_llava.py",
    "test_monitor.py",
    "test_packaging.py",
    "test_page_browser.py",
    "test_structure.py",
    "test_streaming.py",
    "test_sweep.py",
    "test_uncertainty.py",
    "test_workbook.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow part of the suite, by file."""
    here = Path(__file__).parent
    for item in items:
        if not set(item.path.relative_to(here).parts).isdisjoint(SLOW):
            item.add_marker(pytest.mark.slow)
