"""The state of a training, read by the programs that wrote it: torch.distributed.checkpoint and DeepSpeed.

Both unpickle what they read, which may run code: only with ``--unpickle``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.left_by_trainers import distributed_folder, partitions_folder, remedy_for
from mir_plugin.model_adapters.weights.stored import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

_MODEL = "model."  # under which trainers save a model beside its optimizer


def open_training_state(folder: Path) -> dict[str, StoredTensor]:
    """The model's tensors in a folder of FSDP or ZeRO shards, by their names in the model.

    Raises:
        MirError: if there are none, they cannot be read, or DeepSpeed is not installed.
    """
    if place := distributed_folder(folder):
        return _distributed(place)
    if place := partitions_folder(folder):
        return _partitions(folder, place)
    raise MirError(f"{folder} holds no weights and no shards of a training. {remedy_for(folder) or ''}".rstrip())


def _distributed(place: Path) -> dict[str, StoredTensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        entries = FileSystemReader(place).read_metadata().state_dict_metadata
    # What unpickling a damaged file raises is no closed list.
    except Exception as error:
        raise MirError(f"{place / '.metadata'} cannot be read ({error}). Copy the whole folder again.") from error
    headers = {
        key: (tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    if any(key.startswith("optim") for key in headers) or all(key.startswith(_MODEL) for key in headers):
        names = {key: key.removeprefix(_MODEL) for key in headers if key.startswith(_MODEL)}
    else:
        names = {key: key for key in headers}

    @functools.cache
    def state() -> Mapping[str, Tensor]:
        import torch
        from torch.distributed.checkpoint.state_dict_loader import load

        empty = {key: torch.empty(headers[key][0], dtype=getattr(torch, headers[key][1])) for key in names}
        load(empty, storage_reader=FileSystemReader(place))
        return empty

    return {
        name: StoredTensor(key, place / ".metadata", *headers[key], _reader(state, key)) for key, name in names.items()
    }


def _partitions(folder: Path, place: Path) -> dict[str, StoredTensor]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise MirError(
            f"--unpickle needs DeepSpeed for {place}, which is not installed. {remedy_for(folder)}"
        ) from error
    try:
        # Named by its own folder, and not by the file ``latest``, which may have been left behind.
        state = get_fp32_state_dict_from_zero_checkpoint(str(place.parent), tag=place.name)
    except Exception as error:
        raise MirError(f"DeepSpeed cannot read {place} ({error}). {remedy_for(folder)}") from error
    return {
        key: StoredTensor(
            key, place, tuple(value.shape), str(value.dtype).removeprefix("torch."), _reader(lambda: state, key)
        )
        for key, value in state.items()
    }


def _reader(state: Callable[[], Mapping[str, Tensor]], key: str) -> Callable[[], Tensor]:
    return lambda: state()[key]
