"""Weight files of a checkpoint folder as a lazy mapping: key → shape, dtype, file, and how to read it.

Opening reads headers only. A tensor's bytes are read (memory-mapped where the format allows) when it is asked for,
so that a checkpoint larger than memory can be opened, checked and streamed layer by layer. torch is imported when the
first tensor is read, or for a pickle whose header only torch can read.
"""

from __future__ import annotations

import errno
import functools
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, cast

from safetensors import SafetensorError, safe_open

from mir_plugin.errors import MirError
from mir_plugin.files.open_files import REMEDY, is_too_many_open_files
from mir_plugin.files.strict_json import json_document
from mir_plugin.model_adapters.weights.left_by_trainers import distributed_folder, partitions_folder, remedy_for
from mir_plugin.model_adapters.weights.pickle_header import TensorHeader, is_archive, pickle_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
# What torch.compile, FSDP and activation checkpointing put into keys, before the names of wrapped modules.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What data parallelism and PEFT put before every key.
_AROUND_ALL = ("module.", "base_model.model.")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
# How torch words what its weights-only unpickler will not build; the rest of its message advises to build it.
_REFUSED_OBJECT = re.compile(r"(?:GLOBAL|Unsupported class|unrecognized function):? ([A-Za-z_][\w.]*)")


class Weight(Protocol):
    """One parameter's value before it is read; stored as it is, or computed when read (a merged LoRA)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what ``read`` returns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of what ``read`` returns."""
        ...

    @property
    def origin(self) -> str:
        """Key and file, for error messages."""
        ...

    def read(self) -> Tensor:
        """The value, on the CPU, in the dtype it is stored in."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of the checkpoint.

    Attributes:
        key: its name in the file.
        dtype_name: as configs and options have it, "bfloat16".
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    dtype_name: str
    _read: Callable[[], Tensor] = field(repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype it is stored in."""
        import torch

        return cast("torch.dtype", getattr(torch, self.dtype_name))

    @property
    def origin(self) -> str:
        """Key and file, for error messages."""
        return f"{self.key!r} in {self.path}"

    def read(self) -> Tensor:
        """The value, on the CPU, in the dtype it is stored in. Raises MirError if the file is damaged there."""
        try:
            return self._read()
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if _is_out_of_memory(error):
                raise MirError(
                    f"out of main memory while reading {self.origin}: {error}. Try: layers one at a "
                    "time (--device-memory 8GB), half precision (--dtype bfloat16)."
                ) from error
            raise _damaged(self.path, f"{self.key!r} cannot be read: {error}") from error


def open_checkpoint_weights(folder: Path, *, unpickle: bool = False) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder: single or sharded, safetensors (preferred, as transformers does) or ``.bin``.

    ``pytorch_model.bin`` may be a folder of shards, as DeepSpeed's ``zero_to_fp32.py`` writes it. Keys are without what
    wrappers of a model put before them, see ``without_wrappers``.

    Args:
        unpickle: also read the state of a training where there is nothing else; unpickling it may run code.
    Raises:
        MirError: if there are no weights, a shard is missing or damaged, an index disagrees with its shards or points
            outside the folder, or a key occurs twice.
    """
    if unpickle and not has_checkpoint_weights(folder):
        from mir_plugin.model_adapters.weights.training_state import open_training_state

        return without_wrappers(open_training_state(folder))
    return without_wrappers(_opened(folder))


def _opened(folder: Path) -> dict[str, StoredTensor]:
    for place in (folder, *(folder / name for name in SINGLE_FILES if (folder / name).is_dir())):
        for name in SINGLE_FILES:
            if (place / name).is_file():  # before an index, which transformers leaves behind when it saves one file
                return open_weight_file(place / name)
            index = place / f"{name}.index.json"
            if index.is_file():
                return _open_sharded(index)
    shards = sorted(path.name for path in _files_of(folder) if _SHARD.fullmatch(path.name))
    if shards:
        raise MirError(
            f"{folder} holds the weight shards {', '.join(shards)} but no index "
            f"(model.safetensors.index.json or pytorch_model.bin.index.json). Copy the index beside them."
        )
    raise MirError(
        f"{folder} holds no weights: none of {', '.join(SINGLE_FILES)} or a shard index. "
        f"{remedy_for(folder) or 'Check that the download or copy is complete.'}"
    )


def has_checkpoint_weights(folder: Path, *, unpickle: bool = False) -> bool:
    """Whether the folder holds a whole model's weights in one of the layouts ``open_checkpoint_weights`` reads."""
    if unpickle and (distributed_folder(folder) or partitions_folder(folder)):
        return True
    return any((folder / name).exists() or (folder / f"{name}.index.json").is_file() for name in SINGLE_FILES) or any(
        _SHARD.fullmatch(path.name) for path in _files_of(folder)
    )


def open_state(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file of a training's own (projector, trained parts), without what wrappers put before keys.

    Raises:
        MirError: as ``open_weight_file``, and for parameters that were saved empty.
    """
    return without_wrappers(open_weight_file(path))


def without_wrappers(weights: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The mapping without the names of modules that are wrapped around a model, or around parts of it, in training.

    torch.compile (``_orig_mod.``), FSDP and activation checkpointing stand anywhere in a key; data parallelism
    (``module.``) and PEFT (``base_model.model.``) before every key. A tensor's own ``key`` stays as it is in the file.

    Raises:
        MirError: if two keys become one, an adapter was saved unmerged, or ZeRO stage 3 saved parameters without
            gathering them.
    """
    empty = next((weight for weight in weights.values() if weight.shape == (0,)), None)
    if empty is not None:
        raise MirError(
            f"{empty.origin} has shape [0]: it was saved under ZeRO stage 3 without gathering it. Save with "
            "stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py of the training's checkpoint."
        )
    prefixes = tuple(prefix for prefix in _AROUND_ALL if all(unwrapped_key(key).startswith(prefix) for key in weights))
    found: dict[str, StoredTensor] = {}
    for key, weight in weights.items():
        name = unwrapped_key(key)
        for _ in prefixes:
            for prefix in prefixes:
                name = name.removeprefix(prefix)
        if name in found:
            raise MirError(f"{found[name].origin} and {weight.origin} are both {name!r} without their wrappers' names.")
        found[name] = weight
    unmerged = next((weight for name, weight in found.items() if ".base_layer." in name or ".lora_A." in name), None)
    if unmerged is not None:
        raise MirError(
            f"{unmerged.origin} belongs to a PEFT model that was saved whole, with its adapter beside the base "
            "weights. Merge it (merge_and_unload), save that, and measure what was saved."
        )
    return found


def wrappers_of(weights: Iterable[StoredTensor]) -> tuple[str, ...]:
    """Which wrappers' names stand in the keys of these weights' files, for people."""
    keys = [weight.key for weight in weights]
    return tuple(name for name in (*_INSIDE, *_AROUND_ALL) if any(name in f".{key}" for key in keys))


def unwrapped_key(key: str) -> str:
    """The key without the names that torch.compile, FSDP and activation checkpointing put into it."""
    for name in _INSIDE:
        key = key.replace(name, "")
    return key


def open_weight_file(path: Path) -> dict[str, StoredTensor]:
    """All tensors of one ``.safetensors`` file, or of one pickled state dict (``.bin``, ``.pt``, ``.pth``).

    Pickles are loaded with ``weights_only=True``: they may hold tensors and plain containers, never code.

    Raises:
        MirError: if the file is missing, truncated, damaged, empty, or holds something else than named tensors.
    """
    if not path.is_file():
        raise MirError(f"no weights file at {path}. Check that the download or copy is complete.")
    if path.suffix == ".safetensors" and not _is_text(str(path)):
        raise MirError(
            f"the path {path} is not UTF-8, which reading safetensors needs. Rename the folder, or set LC_ALL=C.UTF-8."
        )
    weights = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    if not weights:
        raise MirError(f"{path} contains no tensors. Copy or download it again.")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises MirError if it is missing, unreadable, no object, or names a key twice."""
    try:
        content = json_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MirError(f"no {path.name} in {path.parent}. Check that the checkpoint folder is complete.") from None
    except (OSError, ValueError) as error:
        raise MirError(f"{path} cannot be read as JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise MirError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # how Python shows bytes that are none


def _files_of(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise MirError(
            f"the folder {folder} cannot be listed ({error}). Check the path and its permissions."
        ) from error


def _open_sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MirError(f"{index} has no 'weight_map' naming the shard of each key. Copy or download it again.")
    for key, name in weight_map.items():
        # Compared as text, not resolved: hub caches link every file to a blob outside the folder.
        if not isinstance(name, str) or PurePosixPath(name).name != name:
            raise MirError(f"{index} places {key!r} in {name!r}; shards must be plain file names beside the index.")
    weights: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        shard = index.parent / name
        if not shard.is_file():
            raise MirError(f"the shard {shard} named by {index.name} is missing. Copy or download it.")
        for key, weight in open_weight_file(shard).items():
            if key in weights:
                raise MirError(
                    f"{key!r} is stored twice: in {weights[key].path.name} and in {name} of {index.parent}. "
                    f"Shards of two different saves may have been mixed; copy the checkpoint again."
                )
            weights[key] = weight
    for key, name in weight_map.items():
        if key not in weights or weights[key].path.name != name:
            raise MirError(f"{index.name} places {key!r} in {name}, but {index.parent / name} does not hold it.")
    return weights


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="np"):
            pass  # checks the header and the length of the file
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json_document(file.read(header_bytes).decode())
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    header.pop("__metadata__", None)
    weights: dict[str, StoredTensor] = {}
    for key, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            known = ", ".join(_SAFETENSORS_DTYPES)
            raise MirError(
                f"{key!r} in {path} has dtype {entry['dtype']}; supported: {known}. Quantised weights are not measured."
            )
        shape, dtype = tuple(entry["shape"]), _SAFETENSORS_DTYPES[entry["dtype"]]
        start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        weights[key] = StoredTensor(key, path, shape, dtype, partial(_mapped, path, start, end, shape, dtype))
    return weights


_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


_LEAST_MAPPED = 1 << 20  # bytes; half of a language model's tensors, biases and norms, are smaller


def _mapped(path: Path, start: int, end: int, shape: tuple[int, ...], dtype_name: str) -> Tensor:
    """Bytes of a file as a tensor: read when touched, shared between processes, gone with the tensor.

    Only these bytes are mapped: a map of the whole file would outlive a layer that is streamed through memory. A map
    holds an open file as long as it lives, of which a process may have 1,024 as a rule, so few bytes are read instead.
    """
    import numpy as np
    import torch

    dtype: torch.dtype = getattr(torch, dtype_name)
    if start == end:
        return torch.empty(shape, dtype=dtype)
    if end - start < _LEAST_MAPPED:
        content = np.fromfile(path, dtype=np.uint8, count=end - start, offset=start)
        if len(content) < end - start:
            raise ValueError("the file ends before it")
    else:
        content = np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(end - start,))
    return torch.from_numpy(content).view(dtype).view(shape)


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    header = pickle_header(path)
    if header is None:  # only torch can tell what it holds, or what is wrong with it
        state = _unpickle(path)
        return _stored(path, _headers(path, state), lambda: state)
    return _stored(path, header, functools.cache(partial(_unpickle, path)))


def _stored(
    path: Path, headers: Mapping[str, TensorHeader], state: Callable[[], Mapping[str, Tensor]]
) -> dict[str, StoredTensor]:
    return {
        key: StoredTensor(key, path, header.shape, header.dtype, partial(_of_intact_archive, path, state, key))
        for key, header in headers.items()
    }


def _headers(path: Path, state: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
    import torch

    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise MirError(f"{path} holds {key!r}: {type(value).__name__}; expected a state dict: names and tensors.")
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = "meta" if value.is_meta else str(value.dtype if value.layout == torch.strided else value.layout)
            raise MirError(f"{key!r} in {path} is {kind}; only plain tensors of real numbers are measured.")
    return {
        key: TensorHeader(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()
    }


def _unpickle(path: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        # The layout before torch 1.6 cannot be memory-mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive(path))
    except pickle.UnpicklingError as error:
        refused = _REFUSED_OBJECT.search(str(error))
        if refused is None:
            raise _damaged(path, "it is not a pickle of tensors; nothing in it was run") from error
        raise MirError(
            f"{path} holds a Python object besides tensors ({refused[1]}), which could run code; it was not loaded. "
            f"If you trust it, convert it to safetensors elsewhere."
        ) from error
    # What the unpickler raises on damaged bytes is not documented.
    except Exception as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(state, Mapping):
        raise MirError(f"{path} holds a {type(state).__name__}, expected a state dict: names and tensors.")
    return state


def _of_intact_archive(path: Path, state: Callable[[], Mapping[str, Tensor]], key: str) -> Tensor:
    """The tensor, after the checksums in its file were compared once; torch itself does not look at them."""
    if is_archive(path):
        stat = path.stat()
        _compare_checksums(path, stat.st_size, stat.st_mtime_ns)
    return state()[key].detach()


@functools.lru_cache(maxsize=64)
def _compare_checksums(path: Path, size: int, mtime_ns: int) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its record {damaged} is wrong")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the machine, not the file, is what fails."""
    return getattr(error, "errno", None) == errno.ENOMEM or "allocate memory" in str(error)


def _damaged(path: Path, reason: str) -> MirError:
    if is_too_many_open_files(reason):
        return MirError(f"{path} cannot be opened ({reason.splitlines()[0]}). {REMEDY}")
    try:
        size = f"{path.stat().st_size} bytes"
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError as error:
        if is_too_many_open_files(error):  # safetensors says "no such file" then
            return MirError(f"{path} cannot be opened ({error.strerror}). {REMEDY}")
        size, start = "size unknown", b""
    if start.startswith(b"version https://git-lfs"):
        return MirError(f"{path} is a Git LFS pointer, not the weights. Fetch them: `git lfs pull` in {path.parent}.")
    if start[:1] == b"<":
        return MirError(f"{path} is a web page, not the weights: its download failed. Download it again.")
    detail = reason.splitlines()[0] if reason else "empty file"
    return MirError(f"{path} ({size}) is truncated or damaged: {detail}. Copy or download it again.")
