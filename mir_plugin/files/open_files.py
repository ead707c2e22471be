"""Errors that say nothing about the file in whose name they come: the process may not open any more files."""

from __future__ import annotations

import errno
import os

TOO_MANY = tuple(os.strerror(number) for number in (errno.EMFILE, errno.ENFILE))
REMEDY = "The file may be sound: allow this process more open files (ulimit -n 4096), then run again."


def is_too_many_open_files(error: BaseException | str) -> bool:
    """Whether this is what happened, from an exception of any library or from its text.

    >>> is_too_many_open_files("No such file: Too many open files (os error 24)"), is_too_many_open_files("bad header")
    (True, False)
    """
    return any(message in str(error) for message in TOO_MANY)
