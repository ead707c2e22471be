"""``python -m benchmarks``: all parts, ratios in one run, as a Markdown table each. By hand, on an idle machine.

Part (a) compares with our plain version of the published procedure, (b) with bare forward passes, (c) shows growth with
samples, layers and width, (d) the routes of the trace term, (e) a model of 7B shape, where there is an accelerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import VICUNA_7B, Size, write_checkpoint


def main() -> None:
    """Parse the options, run the parts, print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list("abcde"), help="a b c d e; all by default")
    parser.add_argument("--samples", type=int, default=100, help="samples in parts a and b")
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements of each task, alternating; the best counts"
    )
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "mir-benchmarks")
    options = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "a": against_published,
        "b": overhead,
        "c": growth,
        "d": trace_terms,
        "e": seven_billion,
    }
    for part in options.parts:
        parts[part](options)


def against_published(options: argparse.Namespace) -> None:
    """(a) wall time and growth of peak memory against the published procedure in both its modes."""
    best = _best_of(options, ["ours", "published", "published accurate"])
    ours = best["ours"]
    print(f"\n### (a) Against the published procedure, {options.samples} samples\n")
    print("| procedure | seconds | growth of peak memory, MB | time ÷ ours | memory ÷ ours |\n|---|---|---|---|---|")
    for name, one in best.items():
        ratios = f"{one['seconds'] / ours['seconds']:.2f} | {one['memory'] / ours['memory']:.1f}"
        print(f"| {name} | {one['seconds']:.1f} | {one['memory'] / 1e6:.0f} | {ratios} |")


def overhead(options: argparse.Namespace) -> None:
    """(b) a whole run, with and without standard errors, against its bare forward passes."""
    best = _best_of(options, ["bare", "ours", "ours with standard errors"])
    print(f"\n### (b) Overhead over bare forward passes, {options.samples} samples\n")
    print("| run | seconds | ÷ bare |\n|---|---|---|")
    for name, one in best.items():
        print(f"| {name} | {one['seconds']:.1f} | {one['seconds'] / best['bare']['seconds']:.2f} |")


def growth(options: argparse.Namespace) -> None:
    """(c) seconds and memory with more samples, layers and width."""
    small = replace(Size(), n_layers=4, d=256, n_heads=4, intermediate=704)
    cases = [(small, n) for n in (20, 50, 100, 200, 400)]
    cases += [(replace(small, n_layers=n_layers), 50) for n_layers in (8, 16)]
    cases += [(replace(small, d=d, n_heads=d // 64, intermediate=11 * d // 4), 50) for d in (512, 1024)]
    print("\n### (c) Growth\n\n| layers | d | samples | seconds | seconds a sample | growth of peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for size, n_samples in cases:
        one = _measured(task="ours", checkpoint=str(write_checkpoint(size, options.checkpoints)), n_samples=n_samples)
        seconds = f"{one['seconds']:.1f} | {one['seconds'] / n_samples:.3f}"
        print(f"| {size.n_layers} | {size.d} | {n_samples} | {seconds} | {one['memory'] / 1e6:.0f} |")


def trace_terms(options: argparse.Namespace) -> None:
    """(d) seconds of each route of the trace term."""
    cases = [("cpu", d) for d in (512, 1024, 2048, 4096)]
    cases += [("cuda", d) for d in (512, 1024, 2048, 4096, 5120)] if torch.cuda.is_available() else []
    print("\n### (d) Trace term, seconds\n\n| device | d | cross | gram | cholesky | eigh | scipy sqrtm |")
    print("|---|---|---|---|---|---|---|")
    for device, d in cases:
        one = _measured(task="trace", d=d, device=device, with_scipy=d <= 1024 and device == "cpu")
        cells = [
            f"{one[name]:.2f}" if name in one else "not run"
            for name in ("cross", "gram", "cholesky", "eigh", "scipy sqrtm")
        ]
        print(f"| {device} | {d} | " + " | ".join(cells) + " |")


def seven_billion(options: argparse.Namespace) -> None:
    """(e) a randomly initialised model of 7B shape in bfloat16."""
    print("\n### (e) 7B shape, bfloat16, 100 samples\n")
    if not torch.cuda.is_available():
        print("Not run: no GPU on this machine.")
        return
    checkpoint = str(write_checkpoint(VICUNA_7B, options.checkpoints))
    bare, ours = (_measured(task=task, checkpoint=checkpoint, n_samples=100) for task in ("bare", "ours"))
    print("| run | seconds | growth of GPU memory, MB |\n|---|---|---|")
    for name, one in (("bare forward passes", bare), ("ours", ours)):
        print(f"| {name} | {one['seconds']:.1f} | {one['memory'] / 1e6:.0f} |")


def _best_of(options: argparse.Namespace, tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Every task several times, in turn, so that another load on the machine meets all of them; the fastest of each."""
    checkpoint = str(write_checkpoint(Size(), options.checkpoints))
    runs: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    for _ in range(options.repeats):
        for task in tasks:
            with_errors = task.endswith("with standard errors")
            name = "ours" if with_errors else task
            runs[task].append(
                _measured(task=name, checkpoint=checkpoint, n_samples=options.samples, uncertainty=with_errors)
                if name == "ours"
                else _measured(task=name, checkpoint=checkpoint, n_samples=options.samples)
            )
    return {task: min(measured, key=lambda one: float(one["seconds"])) for task, measured in runs.items()}


def _measured(**arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.measurements", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"<!-- {arguments} {result} -->", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
