"""Short hashes that say whether two results may be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Hashing 27 GB whole would take minutes. Of larger files count the size, this much of beginning and end (the end of a
# pickled state dict holds a checksum of every tensor), and of safetensors the first and last bytes of every tensor:
# training changes a tensor everywhere, but not every tensor.
SAMPLED_BYTES = 1 << 20
WHOLE_UP_TO_BYTES = 8 << 20
TENSOR_END_BYTES = 64
LARGEST_HEADER = 100 << 20  # bytes; the format's own limit
IGNORED_NAMES = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"})
HASHED_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".model", ".txt"})


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_fingerprint(folders: Iterable[Path]) -> str:
    """Hash of the weights, configuration and tokenizer files of checkpoint folders; their location does not count.

    Raises:
        MirError: if a folder or file cannot be read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        try:
            for path in sorted(path for path in folder.iterdir() if _counts(path)):
                _add_file(digest.update, path)
        except OSError as error:
            raise MirError(
                f"{error.filename or folder} cannot be read ({error.strerror}). Check its permissions, or copy the "
                "checkpoint again."
            ) from error
    return digest.hexdigest()[:16]


def _counts(path: Path) -> bool:
    return path.suffix in HASHED_SUFFIXES and path.name not in IGNORED_NAMES and path.is_file()


def _add_file(update: Callable[[bytes], None], path: Path) -> None:
    size = path.stat().st_size
    update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        if size <= WHOLE_UP_TO_BYTES:
            update(file.read())
            return
        update(file.read(SAMPLED_BYTES))
        file.seek(-SAMPLED_BYTES, os.SEEK_END)
        update(file.read(SAMPLED_BYTES))
        for start, end in _tensors_in(file) if path.suffix == ".safetensors" else ():
            for position in (start, max(start, end - TENSOR_END_BYTES)):
                file.seek(position)
                update(file.read(min(TENSOR_END_BYTES, end - start)))


def _tensors_in(file: BinaryIO) -> list[tuple[int, int]]:
    """Where the tensors of a safetensors file lie; none where the header is damaged, which loading will say."""
    file.seek(0)
    n_header = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(n_header, LARGEST_HEADER)))
        offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        first = 8 + n_header
        return sorted((first + start, first + end) for start, end in offsets if 0 <= start <= end)
    except (ValueError, TypeError, LookupError, AttributeError):
        return []


def module_fingerprint(model: nn.Module, read: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter) -> str:
    """Hash of a loaded model: every parameter's name, shape, and first and last values.

    ``read`` gives the value of a named parameter whose weights are not loaded.
    """
    digest = hashlib.sha256()
    for name, current in model.named_parameters():
        parameter = read(name, current)
        flat = parameter.detach().flatten()
        ends = [*flat[:8].float().tolist(), *flat[-8:].float().tolist()]
        digest.update(f"{name}\0{tuple(parameter.shape)}\0{ends}\0".encode())
    return digest.hexdigest()[:16]


def versions() -> Mapping[str, str]:
    """Versions of what can move a result."""
    packages = ("mir-plugin", "torch", "transformers", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
