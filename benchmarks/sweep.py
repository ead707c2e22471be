"""``python -m benchmarks.sweep``: what a sweep of projector checkpoints costs against as many single runs.

The checkpoints are the tiny LLaVA that ships with the package, each with another untrained projector. Processor time is
that of the started programs and theirs; it depends less on what else the machine does than the clock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import torch

from examples.replication.micro_llava import (
    BASE_LLM,
    VISION_TOWER,
    load_parts,
    new_projector,
    save_llava_parts,
    save_llava_projector,
)
from mir_plugin.samples.embedded import micro_checkpoints


def main() -> None:
    """Parse the options, write the checkpoints, measure them both ways, print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.checkpoints, options.samples)


def compare(folder: Path, n_checkpoints: int, n_samples: int) -> None:
    """One sweep, joint report included, against single runs of the same checkpoints."""
    checkpoints = write_checkpoints(folder, n_checkpoints)
    same = ["--base-llm", str(folder / BASE_LLM), "--vision-tower", str(folder / VISION_TOWER), "--embedded"]
    same += ["--n-samples", str(n_samples), "--device", "cpu"]

    def singly() -> None:
        for checkpoint in checkpoints:
            mir("run", str(checkpoint), *same, "--out", str(folder / "singly" / checkpoint.name))

    sweep = cost(lambda: mir("sweep", str(folder / "run" / "checkpoint-*"), *same, "--out", str(folder / "sweep")))
    single = cost(singly)
    print(f"| {n_checkpoints} projector checkpoints, {n_samples} samples | processor seconds | seconds on the clock |")
    print("|---|---|---|")
    print(f"| one `mir sweep` | {sweep[0]:.0f} | {sweep[1]:.0f} |")
    print(f"| {n_checkpoints} times `mir run` | {single[0]:.0f} | {single[1]:.0f} |")
    print(f"| ratio | {sweep[0] / single[0]:.2f} | {sweep[1] / single[1]:.2f} |")


def write_checkpoints(folder: Path, n: int) -> list[Path]:
    """Frozen parts, and n projector-only checkpoints as a pre-training leaves them."""
    parts = load_parts(micro_checkpoints()[0])
    save_llava_parts(folder, parts)
    paths = []
    for step in range(100, 100 * n + 1, 100):
        torch.manual_seed(step)
        projector = new_projector("mlp2x_gelu", parts.tower.config.hidden_size, parts.language_model.config.hidden_size)
        paths.append(folder / "run" / f"checkpoint-{step}")
        save_llava_projector(paths[-1], parts, projector, losses=())
    return paths


def mir(*arguments: str) -> None:
    """Run the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "mir_plugin.cli", *arguments], check=True, capture_output=True)


def cost(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of processor time that child processes took, and seconds on the clock."""
    before, started = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = getrusage(RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return processor, time.perf_counter() - started


if __name__ == "__main__":
    main()
