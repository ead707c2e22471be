"""Print the README's table: every golden case, recorded against computed. Run: python tests/parity/table.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorded_runs import recorded_runs
from test_mir_values import measured


def main() -> None:
    print(
        "| case | exact: recorded (float64) | computed | script, accurate mode | published: range computed | recorded |"
    )
    print("|---|---|---|---|---|---|")
    for run in recorded_runs():
        result = measured(run)
        print(
            f"| {run.name} | {run.mir_exact:.6f} | {result.mir:.6f} | {run.mir_accurate:.6f} "
            f"| {result.mir_published:.4f} … {result.mir_published_upper:.4f} | {run.mir_fast:.4f} |"
        )


if __name__ == "__main__":
    main()
