"""What holds for every test run: its options, its environment, and the table that it may leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from faults import table
from packaging.version import Version

# FSDP2 is public from torch 2.6 on, and accelerate describes parallelism from 1.10 on.
HAS_SHARDING = Version(version("torch")) >= Version("2.6") and Version(version("accelerate")) >= Version("1.10")
collect_ignore = [] if HAS_SHARDING else ["test_sharded_training.py", "test_trainers.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: what `make test-full` adds."""
    parser.addoption("--full", action="store_true", help="the exhaustive battery too, not only a case of each kind")


def pytest_configure(config: pytest.Config) -> None:
    """What the environment says before torch is imported, and to every program that is started.

    One thread for each of several workers, unless something else is asked for; and a free port for every torchrun, so
    that two of them can run at once.
    """
    os.environ.setdefault("PET_STANDALONE", "1")
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for every product of matrices: two processes then compute the same features, to the last bit."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def one_environment() -> Iterator[None]:
    """datasets puts a copy in the place of os.environ; rich keeps the first it saw, and would miss COLUMNS."""
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
