"""Names, shapes and dtypes in a pickled state dict, read without torch and without running anything in it.

Since torch 1.6 ``torch.save`` writes a zip archive: ``data.pkl`` describes the tensors and refers to one record of
numbers for each storage. Only the few globals that a plain state dict of tensors needs are known here.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Class of a storage → dtype, bytes of a number.
_STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}


@dataclass(frozen=True)
class TensorHeader:
    """What is known of a tensor before its numbers are read; the dtype by its name, "bfloat16"."""

    shape: tuple[int, ...]
    dtype: str


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive, and not a bare pickle as torch wrote before 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def pickle_header(path: Path) -> Mapping[str, TensorHeader] | None:
    """Key → header of every tensor in a state dict; None for a file that is anything else, damaged ones included."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {one.filename.partition("/")[2]: one for one in archive.infolist()}
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                return None
            sizes = {name: one.file_size for name, one in records.items()}
            state = _HeaderUnpickler(archive.read(records["data.pkl"]), sizes).load()
    except Exception:  # what an unpickler raises is no closed list; the caller lets torch read such a file
        return None
    plain = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, TensorHeader) for key, value in state.items()
    )
    return state if plain else None


@dataclass(frozen=True)
class _Storage:
    dtype: str
    n_numbers: int


class _HeaderUnpickler(pickle.Unpickler):
    """Builds headers in place of tensors; any global but those of a plain state dict is an error."""

    def __init__(self, content: bytes, record_sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._record_sizes = record_sizes

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global of torch."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        # As torch.save writes them into the file; nothing of torch is imported.
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _header,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, whose numbers stay where they are."""
        _, (dtype, n_bytes), record, _, n_numbers = pid
        if self._record_sizes[f"data/{record}"] != n_numbers * n_bytes:
            raise ValueError(f"record {record} is incomplete")
        return _Storage(dtype, n_numbers)


def _header(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> TensorHeader:
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides), default=0) < 0 or (0 not in shape and last >= storage.n_numbers):
        raise ValueError(f"a tensor of shape {shape} does not fit its storage")
    return TensorHeader(tuple(shape), storage.dtype)


def _parameter(data: TensorHeader, *_: Any) -> TensorHeader:
    return data
