"""Content hashes that say whether two results may be compared.

Files are hashed whole. xxHash reads memory at several GB/s, so a checkpoint costs what reading it costs;
digests of large files are remembered between commands, so that a base LLM shared by fifty checkpoints is read once.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError

# What trainers, people and our own commands leave in a checkpoint folder and no loader reads; everything else counts.
IGNORED_FILES = (
    ".*", "*.md", "*.log", "*.out", "*.lock", "*.csv", "*.jsonl", "*.tsv", "*.xlsx", "*.html", "*.pdf", "*.png",
    "*.jpg", "*.jpeg", "*.gif", "LICENSE*", "events.out.tfevents.*", "optimizer*", "scheduler*", "rng_state*",
    "random_states*", "training_args.*", "trainer_state.json", "zero_to_fp32.py", "latest",
    "all_results.json", "eval_results.json", "train_results.json",
    "mir.json", "indicators.json", "pictures.json", "robustness.json", "sweep.json", "*_mir.json", "*.superseded",
)  # fmt: skip
IGNORED_FOLDERS = (".*", "__pycache__", "checkpoint-*", "global_step*", "runs", "logs", "wandb", "samples")
IN_MEMORY = "memory:"  # begins the fingerprint of weights that are no folder's
CHUNK_BYTES = 16 << 20
REMEMBERED_FROM_BYTES = 8 << 20  # smaller files are read faster than a remembered digest


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """First 16 hex digits of the 128-bit xxHash of some bytes, each part with its length."""
    from xxhash import xxh3_128

    whole = xxh3_128()
    for part in parts:
        whole.update(memoryview(part).nbytes.to_bytes(8, "little"))
        whole.update(part)
    return str(whole.hexdigest())[:16]


def folder_fingerprint(folders: Iterable[Path]) -> str:
    """Hash of every file of checkpoint folders that can move a result; where the folders lie does not count.

    Raises:
        MirError: if a folder or file cannot be read, or changes while it is read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        try:
            for path in files_that_count(folder):
                digest.update(f"{path.relative_to(folder)}\0{file_digest(path)}\0".encode())
        except OSError as error:
            raise MirError(
                f"cannot read {error.filename or folder} ({error.strerror}). Check its permissions, or copy the "
                "checkpoint again."
            ) from error
    return digest.hexdigest()[:16]


def files_that_count(folder: Path) -> Iterator[Path]:
    """Files of a checkpoint folder and its subfolders that can move a result; checkpoints inside it do not count."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not _matches(path.name, IGNORED_FOLDERS):
                yield from files_that_count(path)
        elif path.is_file() and not _matches(path.name, IGNORED_FILES):
            yield path


def file_digest(path: Path) -> str:
    """128-bit xxHash of a file's content, in hex; of a large file remembered while the file stays as it is.

    Raises:
        MirError: if the file changes while it is read.
        OSError: if it cannot be read.
    """
    return remembered(path, "content", lambda: _hash(path))


def remembered(path: Path, what: Any, compute: Callable[[], str]) -> str:
    """Digests made from a file's content; those of a large file are kept until the file changes.

    Args:
        what: a JSON value that tells them from others of the same file.
        compute: reads the file; returns hexadecimal digits and spaces.
    Raises:
        MirError: if the file changes while it is read.
        OSError: if it cannot be read.
    """
    before = _state(path)
    kept = _cache_dir() / fingerprint([what, *before]) if before[2] >= REMEMBERED_FROM_BYTES else None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if kept:
            known, _, checksum = kept.read_text(encoding="ascii").rpartition("\n")
            if checksum == fingerprint(known):
                return known
    found = compute()
    if _state(path) != before:
        raise MirError(f"{path} changed while it was read. Run again when nothing writes to it any more.")
    if kept:
        _remember(kept, f"{found}\n{fingerprint(found)}")
    return found


def versions() -> Mapping[str, str]:
    """Versions of what can move a result."""
    packages = ("mir-plugin", "torch", "transformers", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _state(path: Path) -> tuple[int, ...]:
    """Changes with every write: the time of the last change of the inode cannot be set back, as that of a write can."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _hash(path: Path) -> str:
    from xxhash import xxh3_128

    digest = xxh3_128()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while n_read := file.readinto(buffer):
            digest.update(buffer[:n_read])
    return str(digest.hexdigest())


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mir-plugin" / "digests"


def _remember(kept: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # without a cache folder the file is read again the next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}.part")
        temporary.write_text(text, encoding="ascii")
        temporary.replace(kept)
