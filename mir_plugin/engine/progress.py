"""Progress bars: on standard error, only in a terminal, and only from one of several processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], task: str, unit: str) -> Iterable[T]:
    """The items, with a bar that says how many are done; launchers tell a process its number in ``RANK``."""
    first_process = os.environ.get("RANK", "0") == "0"
    bar: Iterable[T] = tqdm(items, desc=task, unit=unit, disable=None if first_process else True)
    return bar
