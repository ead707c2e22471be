"""Fixtures of the fault battery."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.battery import Bench


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An empty folder to work in, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, request.node.user_properties)


@pytest.fixture(scope="module")
def examples(request: pytest.FixtureRequest) -> int:
    """How many examples a property is tried on."""
    return 3000 if request.config.getoption("--full") else 40
