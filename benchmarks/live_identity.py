"""``python -m benchmarks.live_identity``: what it costs inside a training to know which weights a result is of.

A random LLaVA is sharded by FSDP2 between two forked gloo processes, one thread each. Process 0 reads all weights for
their hash and the other gathers them with it; a look at the model, as before the first step, does neither.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from mir_plugin import measure_live
from mir_plugin.processes import current_group
from mir_plugin.samples.embedded import embedded_samples, micro_checkpoints
from mir_plugin.tasks.training.live import live_adapter

N_PROCESSES, N_LAYERS, WIDTH, N_SAMPLES = 2, 12, 768, 8


def main() -> None:
    """Measure and print the table."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_process, args=(rank, folder, answers)) for rank in range(N_PROCESSES)]
        for one in processes:
            one.start()
        found = dict(answers.get() for _ in processes)
        for one in processes:
            one.join()
    n_bytes = found[0].pop("bytes")
    print(f"{n_bytes / 1e9:.2f} GB of weights, {N_PROCESSES} processes, {N_SAMPLES} samples\n")
    print("| | seconds, process 0 | processor seconds, process 0 | of the other |\n|---|---|---|---|")
    for name, (seconds, spent) in found[0].items():
        print(f"| {name} | {seconds:.2f} | {spent:.2f} | {found[1][name][1]:.2f} |")


def _process(rank: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=N_PROCESSES, init_method=f"file://{Path(folder)}/meet")
    source = micro_checkpoints()[-1]
    config = LlavaConfig.from_pretrained(source)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": WIDTH // 64, "num_key_value_heads": WIDTH // 64, "head_dim": 64}
    for name, value in {**shape, **heads}.items():
        setattr(config.text_config, name, value)
    model = LlavaForConditionalGeneration(config).eval()
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    fully_shard(model)
    processor, group, samples = AutoProcessor.from_pretrained(source), current_group(), embedded_samples(N_SAMPLES)

    def look(identified: bool) -> Callable[[], Any]:
        return lambda: live_adapter(model, processor, None, group, identified=identified)

    look(True)()  # what a first call loads belongs to nobody
    found: dict[str, Any] = {
        "a look, as before the first step": _timed(look(False)),
        "a look, weights read for their identity": _timed(look(True)),
        "a measurement": _timed(lambda: measure_live(model, processor, samples)),
    }
    answers.put((rank, {**found, **({"bytes": n_bytes} if rank == 0 else {})}))
    dist.destroy_process_group()


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    dist.barrier()
    started, processor_started = time.perf_counter(), time.process_time()
    with torch.no_grad():
        work()
    return time.perf_counter() - started, time.process_time() - processor_started


if __name__ == "__main__":
    main()
