"""Options of the fault battery, and the recorder of its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.battery import TABLE, Bench, table_page

ROWS = pytest.StashKey[dict[str, dict[str, tuple[str, str]]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``python -m pytest tests/faults --full --write-table``."""
    parser.addoption("--full", action="store_true", help="hold every fault case, not only the quick ones")
    parser.addoption("--write-table", action="store_true", help="write docs/reference/faults.md; wants --full")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark of the long form."""
    config.addinivalue_line("markers", "full: a fault case that is held only with --full")
    config.stash[ROWS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long form unless asked for."""
    # Where the whole suite runs, this file is read too late to add options.
    if config.getoption("--full", default=False):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was recorded, unless a case failed."""
    rows = session.config.stash[ROWS]
    if session.config.getoption("--write-table", default=False) and rows and not session.testsfailed:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        earlier = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
        TABLE.write_text(table_page(rows, earlier), encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An empty folder to work in, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, request.config.stash[ROWS])


@pytest.fixture(scope="module")
def examples(request: pytest.FixtureRequest) -> int:
    """How many examples a property is tried on."""
    return 3000 if request.config.getoption("--full", default=False) else 40
