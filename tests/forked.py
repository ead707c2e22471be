"""Work that several forked processes do together."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mir_plugin.processes import Group, current_group

from tolerances import HANGS


def together(size: int, work: Callable[[Group], Any], folder: Path) -> list[Any]:
    """What ``work`` returned, or the exception it raised, in each of ``size`` forked gloo processes."""
    # Forked, not spawned: a fresh interpreter would import torch for seconds. One thread, as OpenMP does not fork.
    context = multiprocessing.get_context("fork")

    def process(rank: int, answers: Any) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/rendezvous")
        try:
            answers.put((rank, work(current_group())))
        except Exception as error:  # brought back to the test, which compares it
            answers.put((rank, error))
        finally:
            dist.destroy_process_group()

    answers = context.SimpleQueue()
    processes = [context.Process(target=process, args=(rank, answers)) for rank in range(size)]
    for one in processes:
        one.start()
    deadline = time.monotonic() + HANGS
    found: dict[int, Any] = {}
    while len(found) < size and time.monotonic() < deadline:
        if answers.empty():
            time.sleep(0.01)
        else:
            found |= [answers.get()]
    for one in processes:
        one.join(timeout=5)
        one.kill()
    assert len(found) == size, f"only processes {sorted(found)} of {size} ended"
    return [found[rank] for rank in range(size)]
