"""What every test run reports besides its failures."""

from __future__ import annotations

import pytest
from recorded_runs import LLAVA, MINI_GEMINI, SHAREGPT4V, recorded_runs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many recorded runs were at hand: a parity test that never runs must not look like one that passes."""
    n_cases = len(LLAVA) + len(SHAREGPT4V) + len(MINI_GEMINI)
    runs = list(recorded_runs())
    n_present = len({run.folder for run in runs})
    terminalreporter.write_line(f"golden cases at hand: {n_present} of {n_cases}, {len(runs)} recorded MIR runs")
