"""``python -m benchmarks.ray_sweep``: a sweep on one and on two Ray workers of one core each, against one without Ray.

What is compared is measuring: the clock starts when every worker has finished its first checkpoint, which pays for
importing torch there, and the time is scaled to all checkpoints. The whole command is given beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.sweep import write_checkpoints
from examples.replication.micro_llava import BASE_LLM, VISION_TOWER

ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def main() -> None:
    """Parse the options, write the checkpoints, sweep them in turn, print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_sweep", description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = write_checkpoints(Path(folder), options.checkpoints)
        ways = {"without Ray": [], "Ray, one worker": ["1"], "Ray, two workers": ["2"]}
        times = {way: swept(Path(folder), way, workers, options.samples) for way, workers in ways.items()}
    print(
        f"| {len(checkpoints)} projector checkpoints, {options.samples} samples | seconds measuring | whole command |"
    )
    print("|---|---|---|")
    for way, (measuring, whole) in times.items():
        print(f"| {way} | {measuring:.1f} | {whole:.1f} |")
    one, two, alone = (times[way][0] for way in ("Ray, one worker", "Ray, two workers", "without Ray"))
    print(f"\nTwo workers ÷ one: {two / one:.2f}. One worker ÷ without Ray: {one / alone:.2f}.")


def swept(folder: Path, way: str, workers: list[str], n_samples: int) -> tuple[float, float]:
    """Seconds from the first result to the last, and of the whole command."""
    out = folder / way.replace(" ", "-").replace(",", "")
    command = [sys.executable, "-m", "mir_plugin.cli", "sweep", f"{folder}/run/checkpoint-*", "--embedded"]
    command += ["--base-llm", str(folder / BASE_LLM), "--vision-tower", str(folder / VISION_TOWER), "--device", "cpu"]
    command += ["--n-samples", str(n_samples), "--out", str(out), "--no-report"]
    command += ["--ray", "local", "--max-parallel", *workers] if workers else []
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    whole = time.perf_counter() - started
    finished = sorted(path.stat().st_mtime for path in out.glob("*/mir.json"))
    table = out / "sweep.json"
    n_asked = len(json.loads(table.read_text())["checkpoints"]) if table.is_file() else None
    if len(finished) != n_asked:
        raise SystemExit(f"{way}: {len(finished)} of {n_asked} checkpoints were measured\n{done.stderr[-2000:]}")
    n_workers = int(workers[0]) if workers else 1
    # The first of each worker holds its imports: from then on there is only measuring.
    span = finished[-1] - finished[n_workers - 1]
    return span * len(finished) / (len(finished) - n_workers), whole


if __name__ == "__main__":
    main()
