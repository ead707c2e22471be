"""Worker processes for a replication: one thread each, silent, and gone when the process that started them is."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# Before any library is imported, as that is when they read these.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@contextmanager
def workers(n: int, log_dir: Path) -> Iterator[Executor]:
    """n processes; what they and their libraries print goes to ``log_dir``. What still waits after an error is dropped.

    An exception in the block ends the processes at once, and so does a kill of this process.

    New interpreters, not forks: a forked copy of a process with threads may hang, and not every system can fork.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    # Workers end when they find this pipe closed; the system closes it, too, when this process is killed.
    held_end, leash = context.Pipe()
    executor = ProcessPoolExecutor(n, mp_context=context, initializer=_begin, initargs=(log_dir, leash))
    try:
        yield executor
    except BaseException:
        held_end.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        held_end.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def results_of(executor: Executor, calls: Iterable[tuple[Callable[..., T], tuple[Any, ...]]]) -> Iterator[T]:
    """What the calls return, as they finish; the first error is raised, and the rest is not begun."""
    futures = [executor.submit(function, *arguments) for function, arguments in calls]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _begin(log_dir: Path, leash: Connection) -> None:
    log = (log_dir / f"worker-{os.getpid()}.log").open("a", encoding="utf-8", buffering=1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: Connection) -> None:
    wait([leash])
    os._exit(1)
