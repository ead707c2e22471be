"""Print the table of docs/reference/parity.md: every golden case, recorded against computed.

Run: python tests/parity/table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorded_runs import RecordedRun, recorded_runs

from mir_plugin.results import MirResult

HEADINGS = (
    "| case | exact: recorded (float64) | computed | script, accurate mode | published: range computed | recorded |"
)


def row(run: RecordedRun, result: MirResult) -> str:
    """One line of the table."""
    return (
        f"| {run.name} | {run.mir_exact:.6f} | {result.mir:.6f} | {run.mir_accurate:.6f} "
        f"| {result.mir_published:.4f} … {result.mir_published_upper:.4f} | {run.mir_fast:.4f} |"
    )


def main() -> None:
    """Measure every case and print its line."""
    from test_mir_values import measured

    print(f"| {' | '.join(HEADINGS)} |")
    print("|---|---|---|---|---|---|")
    for run in recorded_runs():
        print(row(run, measured(run)))


if __name__ == "__main__":
    main()
