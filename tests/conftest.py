"""What holds for every test run: its options, its environment, and what it reports besides its failures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from faults import table
from recorded_runs import LLAVA, MINI_GEMINI, SHAREGPT4V, recorded_runs


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: what `make test-full` adds."""
    parser.addoption("--full", action="store_true", help="the exhaustive battery too, not only a case of each kind")


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of several workers, unless the environment says otherwise; set before torch is imported."""
    if config.getoption("numprocesses", default=None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the exhaustive battery unless asked for."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """`make test-full` leaves a table of every fault that was tried, in build/faults.md."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--full") or reporter is None or hasattr(session.config, "workerinput"):
        return
    passed = reporter.stats.get("passed", [])
    rows = [row for report in passed for name, row in report.user_properties if name == table.PROPERTY]
    if rows:
        page = session.config.rootpath / "build" / "faults.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(table.page(rows), encoding="utf-8")


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
