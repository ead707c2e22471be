"""How many threads a CPU's small pieces of work take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Decompositions up to this width run on one thread. They are thousands of parallel regions shorter than the time slice
# that a core gives to another program: each region waits, busily, for a thread that has no core. d = 768 with two
# threads on two busy cores took 3.2 s, with one 0.18 s (benchmarks/RESULTS.md).
WIDEST_ON_ONE_THREAD = 2048
# Passes over fewer numbers than this are over before a second thread has paid for itself: about 20 samples of d = 768.
FEWEST_FOR_ALL_THREADS = 2**24


@contextmanager
def threads_for_decomposition(d: int) -> Iterator[None]:
    """One thread for decompositions of (d, d) matrices in this block, unless they are wide."""
    with _at_most(1 if d < WIDEST_ON_ONE_THREAD else torch.get_num_threads()):
        yield


@contextmanager
def threads_for_pass(n_numbers: int) -> Iterator[None]:
    """One thread for passes over so many numbers in this block, unless they are many."""
    with _at_most(1 if n_numbers < FEWEST_FOR_ALL_THREADS else torch.get_num_threads()):
        yield


@contextmanager
def _at_most(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before <= n:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
