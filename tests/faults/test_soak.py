"""Hundreds of measurements in one process: memory and open files stay as they are."""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.battery import Bench, Case, Outcome, Right, each
from faults.children import Child, all_of, mir

from golden_data import require_golden

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

MEGABYTE = 1 << 20
# What an allocator's pools do to a process of this size from one run to the next; a leak of one layer's features of
# these small models (a quarter of a megabyte) in each run would show as five times as much over 200 runs.
SWING = 10 * MEGABYTE


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def noting(place: Path) -> Callable[[], None]:
    """In a child: after every measurement of a sweep, note memory, open files and its processor time."""

    def patch() -> None:
        from mir_plugin.selection.sweep import Sweep, SweepEntry

        measured, notes = Sweep._measured, []
        gc.freeze()  # what the imports made is looked through no more: collecting takes milliseconds

        def noted(sweep: Sweep, entry: SweepEntry) -> None:
            before = time.process_time()
            measured(sweep, entry)
            spent = time.process_time() - before
            gc.collect()
            state = next(one.state for one in sweep.entries if one.name == entry.name)
            notes.append((resident(), open_files(), state, spent))
            place.write_text(json.dumps(notes))

        Sweep._measured = noted  # type: ignore[method-assign]

    return patch


def soak(n: int, *options: str) -> Callable[[Bench], Outcome]:
    """A sweep over n checkpoints, in one process."""

    def act(bench: Bench) -> Outcome:
        case = require_golden("llava/llava_full")
        for step in range(1, n + 1):
            shutil.copytree(case / "model", bench.folder / f"checkpoint-{step}")  # links would be one checkpoint
        samples = case / "samples"
        work = mir(
            "sweep", "checkpoint-*", "--vision-tower", case / "vision_tower", "--images", samples, "--texts", samples,
            "--n-samples", 2, "--out", "out", "--device", "cpu", "--no-report", *options,
        )  # fmt: skip
        ended = Child(all_of(noting(bench.folder / "notes.json"), work)).ended()
        assert ended.code == 0, ended.printed
        notes = json.loads((bench.folder / "notes.json").read_text())
        assert [state for _, _, state, _ in notes] == ["measured"] * n
        settled = notes[n // 4 :]  # by then every library has allocated what it keeps
        files = {count for _, count, _, _ in settled}
        memory = [size for size, _, _, _ in settled]
        third = len(memory) // 3
        growth = statistics.median(memory[-third:]) - statistics.median(memory[:third])
        assert len(files) == 1, f"open files: {[count for _, count, _, _ in notes]}"
        assert growth < SWING, f"memory grew by {growth / MEGABYTE:.1f} MB: {memory}"
        seconds = [seconds for _, _, _, seconds in settled]
        assert statistics.median(seconds[-third:]) < 3 * statistics.median(seconds[:third]) + 0.1, seconds
        per_run = statistics.median(seconds)
        return Outcome(
            0,
            value=f"{files.pop()} open files after each of the last {len(settled)}; memory {growth / MEGABYTE:+.1f} MB "
            f"from their first third to their last, of {memory[-1] / MEGABYTE:.0f}; {per_run:.2f} s of processor time "
            "each throughout",
        )

    return act


said = Right(lambda value, _: str(value))
CASES = (
    Case("20 runs", "a sweep over 20 checkpoints in one process", soak(20), said),
    Case("200 runs", "a sweep over 200 checkpoints in one process", soak(200), said, full=True),
)


@each(CASES)
def test_memory_and_open_files_stay_flat_over_many_runs(case: Case, bench: Bench) -> None:
    bench.hold("soak", case)
