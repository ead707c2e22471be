"""The tests that compare numbers, under conditions that stand for other machines: ``make test-conditions``.

Prints one line for each condition: passed, failed, minutes. Name some (``python tests/conditions.py avx2 load``) to run
only these; what follows ``--`` goes to pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CONDITIONS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "4 threads": {"OMP_NUM_THREADS": "4"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "openblas-haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "load": {},
}
# Kernels are chosen by these.
CHOICES = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# Forward passes, statistics, processes; command lines of hosts start their own and take the longest.
TESTS = (
    "adapters", "parity", "hosts", "faults/test_numerics.py", "faults/test_determinism.py", "test_differentiable.py",
    "test_distributed.py", "test_engine.py", "test_frechet.py", "test_indicators.py", "test_mir.py", "test_moments.py",
    "test_micro_llava.py", "test_monitor.py", "test_normalize.py", "test_robustness.py", "test_streaming.py",
    "test_sweep.py", "test_uncertainty.py",
)  # fmt: skip


def environment_of(name: str) -> dict[str, str]:
    """The environment of a condition; it begins without anything that chooses kernels."""
    return {key: value for key, value in os.environ.items() if key not in CHOICES} | CONDITIONS[name]


def run(name: str, arguments: list[str]) -> tuple[str, bool]:
    """A line of the table, and whether everything passed."""
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 if name == "load" else 0)]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not host", *arguments],
            cwd=REPOSITORY, env=environment_of(name), text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    finally:
        for process in load:
            process.kill()
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    counts = {word: number for number, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = sum(int(counts.get(word, 0)) for word in ("failed", "error"))
    minutes = (time.monotonic() - started) / 60
    return f"| {name} | {counts.get('passed', 0)} | {failed} | {minutes:.1f} |", done.returncode == 0


def main() -> None:
    """Run and print; exit with 1 if anything failed."""
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    names, more = given[:at] or list(CONDITIONS), given[at + 1 :]
    print("| condition | passed | failed | minutes |\n|---|---|---|---|", flush=True)
    all_passed = True
    for name in names:
        line, passed = run(name, more or [f"tests/{part}" for part in TESTS])
        all_passed &= passed
        print(line, flush=True)
    sys.exit(not all_passed)


if __name__ == "__main__":
    main()
