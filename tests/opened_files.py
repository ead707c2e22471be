"""Which files are opened, by whatever code. The kernel is asked: weights and tokenizers are opened outside Python."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN_OPEN, _IN_ISDIR, _NONBLOCK = 0x20, 0x40000000, 0o4000
_HEADER = struct.Struct("iIII")


@contextmanager
def opened_below(folder: Path) -> Iterator[set[Path]]:
    """Files below a folder that are opened inside the block; the set is filled when it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        pytest.skip("needs inotify, which is Linux's")
    found: set[Path] = set()
    handle = libc.inotify_init1(_NONBLOCK)
    try:
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        watched = {libc.inotify_add_watch(handle, bytes(path), _IN_OPEN): path for path in folders}
        assert -1 not in watched, os.strerror(ctypes.get_errno())
        yield found
        found |= set(_events(handle, watched))
    finally:
        os.close(handle)


def _events(handle: int, watched: dict[int, Path]) -> Iterator[Path]:
    while True:
        try:
            content = os.read(handle, 1 << 20)
        except BlockingIOError:
            return
        while content:
            watch, mask, _, length = _HEADER.unpack_from(content)
            name = content[_HEADER.size : _HEADER.size + length].rstrip(b"\0")
            content = content[_HEADER.size + length :]
            if name and not mask & _IN_ISDIR:
                yield watched[watch] / os.fsdecode(name)
