"""Files that a reader finds whole or not at all, and folders that one run writes at a time. Standard library only.

Locks are the kernel's: they end with the process, however it ends, and leave no file behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mir_plugin.errors import MirError

NO_WAITING = fcntl.LOCK_EX | fcntl.LOCK_NB


def write_atomically(path: Path, text: str) -> None:
    """Write text so that no reader and no kill leaves a part of it behind. Raises MirError as ``replacing`` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name next to ``path`` to write to; what is written takes its place when the ``with`` block ends well.

    What killed processes left half-written on the way to the same place is removed.

    Raises:
        MirError: if the folder or the file cannot be written; names it and says why.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_strays(path)
        with temporary.open("wb") as claim:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for a stray one
                fcntl.flock(claim, NO_WAITING)
            yield temporary
            os.fsync(claim.fileno())
        temporary.replace(path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold an output folder for the length of the block, so that no second run mixes its layers with this one's.

    It is made where it is missing, and goes again if nothing was written.

    Raises:
        MirError: if another process holds it, or it cannot be written to.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise not_writable(folder, PermissionError("it is read-only for you"))
        try:
            fcntl.flock(handle, NO_WAITING)
        except BlockingIOError as error:
            raise MirError(
                f"{folder} is being written by another run. Wait until that ends, or name another folder with --out."
            ) from error
        except OSError:  # a file system without locks: work as if nobody else were there
            pass
        yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something
                one.rmdir()
        os.close(handle)


def not_writable(path: Path, error: OSError) -> MirError:
    """The message for a file or folder that cannot be written."""
    return MirError(
        f"cannot write {path}: {error.strerror or error}. What was finished before is kept; make room or write to "
        "another folder (--out), then repeat the command."
    )


def _remove_strays(path: Path) -> None:
    """Remove half-written files of this name; one whose lock can be had is not being written any more."""
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError), stray.open("rb+") as file:
            fcntl.flock(file, NO_WAITING)
            stray.unlink()
