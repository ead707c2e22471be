"""Progress on standard error, from one of several processes: a bar in a terminal, else now and then a line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30.0


def progress(items: Iterable[T], task: str, unit: str) -> Iterable[T]:
    """The items, told how many are done and how long the rest takes; launchers tell a process its number in ``RANK``.

    What ends within ``SECONDS_BETWEEN_LINES`` prints nothing outside a terminal.
    """
    if os.environ.get("RANK", "0") != "0":
        return items
    if not sys.stderr.isatty():
        return _with_lines(items, task, unit)
    bar: Iterable[T] = tqdm(items, desc=task, unit=unit, disable=None)
    return bar


def _with_lines(items: Iterable[T], task: str, unit: str) -> Iterator[T]:
    started = told = time.monotonic()
    total = len(items) if isinstance(items, Sized) else None
    for n_done, item in enumerate(items):
        now = time.monotonic()
        if n_done and now - told >= SECONDS_BETWEEN_LINES:
            told = now
            rest = (
                ""
                if total is None
                else f" of {total}, about {duration((now - started) / n_done * (total - n_done))} left"
            )
            print(f"mir: {task}: {unit} {n_done}{rest}", file=sys.stderr, flush=True)
        yield item


def duration(seconds: float) -> str:
    """A length of time as people say it.

    >>> duration(8.4), duration(200), duration(5400), duration(200_000)
    ('8 s', '3 min', '1.5 h', '56 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
