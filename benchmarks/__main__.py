"""``python -m benchmarks``: all parts, ratios in one run, as a Markdown table each. By hand, on an idle machine.

Part (a) compares with our plain version of the published procedure, (b) with bare forward passes, (c) shows growth with
samples, layers, width and processes, (d) the routes of the trace term, (e) a model of 7B shape, where
there is a GPU. On a machine that does other work as well, look at the processor seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import TINY, VICUNA_7B, Size, write_checkpoint

Runs = Mapping[str, Mapping[str, Any]]
WHOLE_RUNS = {  # what parts a and b compare; what both need is run once for both
    "a": ("ours", "published", "published accurate"),
    "b": ("bare", "ours", "ours with standard errors"),
}
TIMES = ("seconds", "processor seconds")
ROUTES = ("cross", "gram", "cholesky", "eigh", "with errors", "polar", "polar with errors", "scipy sqrtm")

# The published protocol's texts are CNN/DailyMail articles: 781 words on average (See et al. 2017, arXiv 1704.04368).
ARTICLE_WORDS = 781


def main() -> None:
    """Parse the options, run the parts, print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list("abcde"), help="a b c d e; all by default")
    parser.add_argument("--samples", type=int, default=100, help="samples in parts a, b and e")
    parser.add_argument(
        "--text-words",
        type=int,
        default=ARTICLE_WORDS,
        help="words of each text in parts a, b and e; the mean of CNN/DM",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="measurements of each task of a and b, in turn; the fastest counts"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="part e with a tiny model, GPU or not: whether it runs, not how fast"
    )
    parser.add_argument(
        "--busy",
        type=int,
        default=0,
        metavar="N",
        help="that many processes that only compute run beside parts a and b",
    )
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "mir-benchmarks")
    options = parser.parse_args()
    tasks = list(dict.fromkeys(task for part in options.parts for task in WHOLE_RUNS.get(part, ())))
    with _busy(options.busy):
        runs = _best_of(options, tasks) if tasks else {}
    parts: dict[str, Callable[[], None]] = {
        "a": lambda: against_published(runs, options),
        "b": lambda: overhead(runs, options),
        "c": lambda: growth(options.checkpoints),
        "d": trace_terms,
        "e": lambda: seven_billion(options),
    }
    for part in options.parts:
        parts[part]()


def against_published(runs: Runs, options: argparse.Namespace) -> None:
    """(a) wall time and growth of peak memory against the published procedure in both its modes."""
    ours = runs["ours"]
    print(f"\n### (a) Against the published procedure, {_described(options)}\n")
    print(
        "| procedure | seconds | processor seconds | growth of peak memory, MB "
        "| time ÷ ours | processor time ÷ ours | memory ÷ ours |\n|---|---|---|---|---|---|---|"
    )
    for name in WHOLE_RUNS["a"]:
        one = runs[name]
        ratios = " | ".join(f"{one[time] / ours[time]:.2f}" for time in TIMES)
        memory = f"{one['memory'] / ours['memory']:.1f}"
        print(f"| {name} | {_times(one)} | {one['memory'] / 1e6:.0f} | {ratios} | {memory} |")


def overhead(runs: Runs, options: argparse.Namespace) -> None:
    """(b) a whole run, with and without standard errors, against its bare forward passes."""
    print(f"\n### (b) Overhead over bare forward passes, {_described(options)}\n")
    print(
        "| run | seconds | processor seconds | ÷ bare | processor time ÷ bare | growth of peak memory, MB |\n"
        "|---|---|---|---|---|---|"
    )
    for name in WHOLE_RUNS["b"]:
        one = runs[name]
        ratios = " | ".join(f"{one[time] / runs['bare'][time]:.2f}" for time in TIMES)
        print(f"| {name} | {_times(one)} | {ratios} | {one['memory'] / 1e6:.0f} |")


def growth(checkpoints: Path) -> None:
    """(c) seconds and memory with more samples, layers, width and processes."""
    small = replace(Size(), n_layers=4, d=256, n_heads=4, intermediate=704)
    cases = [(small, n, 1) for n in (20, 50, 100, 200, 400)]
    cases += [(replace(small, n_layers=n_layers), 50, 1) for n_layers in (8, 16)]
    cases += [(replace(small, d=d, n_heads=d // 64, intermediate=11 * d // 4), 50, 1) for d in (512, 1024)]
    cases += [(small, 100, 2)]
    print("\n### (c) Growth; one thread a process\n")
    print(
        "| layers | d | samples | processes | seconds | processor seconds, process 0 | a sample "
        "| growth of peak memory, MB, process 0 | one layer's features, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size, n_samples, n_processes in cases:
        one = _measured(
            n_processes,
            task="ours",
            checkpoint=str(write_checkpoint(size, checkpoints)),
            n_samples=n_samples,
            text_words=1,  # one passage
            n_threads=1,
        )
        spent = one["processor seconds"]
        cells = [size.n_layers, size.d, n_samples, n_processes, f"{one['seconds']:.1f}", f"{spent:.1f}"]
        cells += [f"{spent / n_samples:.3f}", f"{one['memory'] / 1e6:.0f}", f"{one['features'] / 1e6:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def trace_terms() -> None:
    """(d) seconds of each route of the trace term."""
    cases = [("cpu", d) for d in (512, 1024, 2048, 4096)]
    cases += [("cuda", d) for d in (512, 1024, 2048, 4096, 5120)] if torch.cuda.is_available() else []
    print("\n### (d) Trace term, seconds\n\n| device | d | " + " | ".join(ROUTES) + " |")
    print("|---|---|" + "---|" * len(ROUTES))
    for device, d in cases:
        one = _measured(task="trace", d=d, device=device, with_scipy=d <= 1024 and device == "cpu")
        cells = [f"{one[name]:.2f}" if name in one else "not run" for name in ROUTES]
        print(f"| {device} | {d} | " + " | ".join(cells) + " |")


def seven_billion(options: argparse.Namespace) -> None:
    """(e) a randomly initialised model of 7B shape in bfloat16: seconds after loading, peak memory."""
    print(f"\n### (e) {'Tiny' if options.tiny else '7B'} shape, bfloat16, {_described(options)}\n")
    if not torch.cuda.is_available() and not options.tiny:
        print(
            "Not run: no GPU on this machine. `python -m benchmarks e --tiny --samples 2` runs this part without one."
        )
        return
    settings = {
        "checkpoint": str(write_checkpoint(TINY if options.tiny else VICUNA_7B, options.checkpoints)),
        "n_samples": options.samples,
        "text_words": options.text_words,
    }
    print("| run | device | seconds | ÷ bare | peak GPU memory, MB | peak host memory, MB |\n|---|---|---|---|---|---|")
    runs = {name: _measured_run(name, settings) for name in WHOLE_RUNS["b"]}
    for name, one in runs.items():
        ratio = one["seconds"] / runs["bare"]["seconds"]
        on_gpu = "none" if one["GPU memory"] is None else f"{one['GPU memory'] / 1e6:.0f}"
        print(
            f"| {name} | {one['device']} | {one['seconds']:.1f} | {ratio:.2f} | {on_gpu} "
            f"| {one['host memory'] / 1e6:.0f} |"
        )


def _best_of(options: argparse.Namespace, tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Every task several times, in turn, so that another load on the machine meets all of them; the fastest of each."""
    settings = {
        "checkpoint": str(write_checkpoint(Size(), options.checkpoints)),
        "n_samples": options.samples,
        "text_words": options.text_words,
    }
    runs: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    for _ in range(options.repeats):
        for task in tasks:
            runs[task].append(_measured_run(task, settings))
    return {task: min(measured, key=lambda one: float(one["seconds"])) for task, measured in runs.items()}


def _measured_run(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    name = task.removesuffix(" with standard errors")
    return _measured(task=name, uncertainty=name != task, **settings)


@contextlib.contextmanager
def _busy(n: int) -> Iterator[None]:
    """As many processes that multiply matrices on one thread each: the training that others run on these cores."""
    code = "import torch; torch.set_num_threads(1); a = torch.randn(500, 500)\nwhile True: a @ a"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(n)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def _times(one: Mapping[str, Any]) -> str:
    return " | ".join(f"{one[time]:.1f}" for time in TIMES)


def _described(options: argparse.Namespace) -> str:
    beside = f", {options.busy} busy processes beside it" if options.busy else ""
    return f"{options.samples} samples, texts of {options.text_words} words{beside}"


def _measured(n_processes: int = 1, **arguments: Any) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={n_processes}"] if n_processes > 1 else []
    command = [sys.executable, *launcher, "-m", "benchmarks.measurements", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"<!-- {arguments} {result} -->", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
