"""``python -m benchmarks.dealt``: statistics with layers' decompositions dealt out to processes, against repeated ones.

Forked gloo processes share random features of some layers, one thread each, and take the statistics with standard
errors: once each process decomposes every layer, once each its share. Times are those of the slowest process, on the
clock and of its processor; the second counts where other programs run as well, or processes are more than cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mir_plugin.measurement.resume import FinishedLayer
from mir_plugin.measurement.statistics import Statistics
from mir_plugin.processes import Group, current_group
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures

N_SAMPLES, N_VISION, N_TEXT = 12, 256, 128


def main() -> None:
    """Parse the options, measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dealt", description=__doc__)
    parser.add_argument("--d", type=int, default=1024, help="width")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    options = parser.parse_args()
    print(
        f"{options.layers} layers, d = {options.d}, {N_SAMPLES} samples of {N_VISION} vision and {N_TEXT} text tokens\n"
    )
    print("| processes | repeated, s | dealt out, s | ratio | repeated, processor s | dealt out | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.processes:
        found = _in_processes(size, options.d, options.layers, options.repeats)
        times = [max(one[how][clock] for one in found) for clock in (0, 1) for how in (0, 1)]
        (before, after) = ([layer.distance.distance for layer in found[0][how][2]] for how in (0, 1))
        moved = max(abs(a - b) / b for a, b in zip(after, before, strict=True))
        cells = (f"{times[k]:.2f} | {times[k + 1]:.2f} | {times[k + 1] / times[k]:.2f}" for k in (0, 2))
        print(f"| {size} | {' | '.join(cells)} | {moved:.0e} |", flush=True)


def _timed(
    group: Group, d: int, n_layers: int, n_together: int, n_repeats: int
) -> tuple[float, float, list[FinishedLayer]]:
    """Seconds and processor seconds of the fastest of some rounds of statistics, and what they gave."""
    features = [_features(group, d, layer) for layer in range(1, n_layers + 1)]
    seconds, spent, finished = [], [], []
    for _ in range(n_repeats):
        statistics = Statistics(
            torch.device("cpu"), MirConfig(), tuple(range(N_SAMPLES)), group, n_behind=0, n_together=n_together
        )
        group.all_gather_object(None)  # begin together
        started, processor_started = time.perf_counter(), time.process_time()
        finished = []
        for one in features:
            statistics.add(one, ())
            finished += statistics.finished()
        finished += statistics.rest()
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - processor_started)
    return min(seconds), min(spent), finished


def _features(group: Group, d: int, layer: int) -> TokenFeatures:
    """Of this process's samples."""
    own = group.shard(range(N_SAMPLES))
    tokens = []
    for n, shift in ((N_VISION, 1.0), (N_TEXT, 0.0)):
        drawn = [torch.randn(n, d, generator=torch.Generator().manual_seed(1000 * layer + sample)) for sample in own]
        tokens.append(torch.cat(drawn) * torch.logspace(0, -2, d) + shift)
    return TokenFeatures(layer, *tokens, (N_VISION,) * len(own), (N_TEXT,) * len(own))


def _in_processes(size: int, d: int, n_layers: int, n_repeats: int) -> list[Any]:
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:

        def process(rank: int) -> None:
            torch.set_num_threads(1)
            dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{Path(folder)}/meet")
            group = current_group()
            answers.put((rank, [_timed(group, d, n_layers, n_together, n_repeats) for n_together in (1, size)]))
            dist.destroy_process_group()

        processes = [context.Process(target=process, args=(rank,)) for rank in range(size)]
        for one in processes:
            one.start()
        found = dict(answers.get() for _ in processes)
        for one in processes:
            one.join()
    return [found[rank] for rank in range(size)]


if __name__ == "__main__":
    main()
