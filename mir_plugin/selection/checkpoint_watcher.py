"""Checkpoints that a training is still writing: which of them are complete, and which are new.

Trainers do not signal that a checkpoint is written. It counts as complete when its configuration can be
parsed, its weights files are as long as they say themselves, every shard of an index is there, and nothing has changed
between two looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import in_training_order, step_in_name
from mir_plugin.model_adapters.weights.left_by_trainers import distributed_folder, partitions_folder, remedy_for

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "mm_projector.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)

Signature = tuple[tuple[str, int, int], ...]


class CheckpointWatcher:
    """Complete checkpoints below a folder, each handed out once for every state of its files.

    Folders count that are named after a step (checkpoint-200, step-200, ...), at any depth.
    """

    def __init__(
        self, folder: Path, settle_seconds: float = 5.0, *, has_base: bool = False, unpickle: bool = False
    ) -> None:
        """Start watching.

        Args:
            settle_seconds: how long the files of a checkpoint must not have changed.
            has_base, unpickle: as for ``why_incomplete``.
        Raises:
            MirError: if there is no such folder.
        """
        if not folder.is_dir():
            raise MirError(f"--watch {folder}: no such folder. Name the output folder of the training.")
        self._folder = folder
        self._settle_seconds = settle_seconds
        self._has_base, self._unpickle = has_base, unpickle
        self._unchanged_since: dict[Path, tuple[Signature, float]] = {}
        self._handed_out: dict[Path, Signature] = {}
        self._lacks: dict[Path, str] = {}
        self._news: dict[Path, str] = {}

    def ready(self, now: float | None = None) -> list[Path]:
        """Checkpoints that have become complete since the last call, in training order.

        Args:
            now: seconds on a clock that never goes back; the machine's own by default.
        """
        now = time.monotonic() if now is None else now
        complete = []
        for checkpoint in checkpoints_below(self._folder):
            signature = _signature(checkpoint)
            before, since = self._unchanged_since.get(checkpoint, ((), now))
            if signature != before:
                since = now
            self._unchanged_since[checkpoint] = (signature, since)
            settled = signature == before and now - since >= self._settle_seconds
            if not settled or self._handed_out.get(checkpoint) == signature:
                continue
            lacks = self._lacking(checkpoint)
            if lacks is None:
                self._handed_out[checkpoint] = signature
                complete.append(checkpoint)
            elif self._lacks.get(checkpoint) != lacks:
                self._lacks[checkpoint] = self._news[checkpoint] = lacks
        return in_training_order(complete)

    def news(self) -> Mapping[Path, str]:
        """What checkpoints that have stopped changing still lack, each reason once."""
        news, self._news = self._news, {}
        return news

    def unfinished(self) -> Mapping[Path, str]:
        """Why the folders that were never handed out were not, and what to do about each, in training order."""
        left = [checkpoint for checkpoint in checkpoints_below(self._folder) if checkpoint not in self._handed_out]
        left += lightning_folders_below(self._folder)
        return {checkpoint: _reason(checkpoint, self._lacking(checkpoint)) for checkpoint in in_training_order(left)}

    def _lacking(self, checkpoint: Path) -> str | None:
        return why_incomplete(checkpoint, has_base=self._has_base, unpickle=self._unpickle)

    def rounds(
        self, poll_seconds: float, idle_seconds: float | None = None, *, busy: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Path]]:
        """Look again and again; yields what each look found, often nothing.

        Args:
            idle_seconds: end when nothing new came for so long; None never ends.
            busy: whether what was found before is still being measured, which is not idle.
        """
        quiet_since = time.monotonic()
        while True:
            found = self.ready()
            yield found
            if found or busy():
                quiet_since = time.monotonic()  # the time it took to measure them was not idle
            elif idle_seconds is not None and time.monotonic() - quiet_since >= idle_seconds:
                return
            time.sleep(poll_seconds)


def checkpoints_below(folder: Path) -> list[Path]:
    """Folders named after a step; what lies inside them is theirs."""
    found = []
    for where, directories, _ in os.walk(folder):
        named = [name for name in directories if step_in_name(name) is not None]
        # Trainers of some versions save into a temporary folder and rename it.
        found += [Path(where) / name for name in named if not name.startswith("tmp")]
        directories[:] = [name for name in directories if name not in named]
    return found


def lightning_folders_below(folder: Path) -> list[Path]:
    """Folders with Lightning's checkpoints, files or folders that are named after a step inside one that is not."""
    found = {path.parent for path in folder.rglob("*.ckpt")}
    steps = checkpoints_below(folder)
    return sorted(one for one in found if not any(one.is_relative_to(step) for step in steps))


def why_incomplete(checkpoint: Path, *, has_base: bool = False, unpickle: bool = False) -> str | None:
    """What a checkpoint folder still lacks, as far as its files tell; None if nothing.

    Args:
        has_base: whether the configuration may come from elsewhere.
        unpickle: whether shards that a training keeps for itself count as weights.
    """
    # The adapter of a Hugging Face model has its base's config.
    has_config = has_base and not (checkpoint / "config.json").exists()
    if not (has_config or _is_json(checkpoint / "config.json") or _is_json(checkpoint / "adapter_config.json")):
        return "config.json is not written yet"
    files = [file for name in WEIGHTS for file in _files_at(checkpoint / name)]
    for index in (checkpoint / name for name in INDEXES if (checkpoint / name).exists()):
        if not _is_json(index):
            return f"{index.name} is not written yet"
        weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            return f"{index.name} lists no shards"
        files += [checkpoint / shard for shard in sorted(set(weight_map.values()))]
    if not files:
        return None if unpickle and _has_whole_shards(checkpoint) else "no weights file is there yet"
    return next((f"{file.name} is not written yet" for file in files if not _is_whole(file)), None)


def _has_whole_shards(checkpoint: Path) -> bool:
    """Whether there is what torch.distributed.checkpoint and DeepSpeed write when all shards are written."""
    shards = distributed_folder(checkpoint)
    if shards is not None:
        return (shards / ".metadata").is_file()
    return partitions_folder(checkpoint) is not None and (checkpoint / "latest").is_file()


def _reason(checkpoint: Path, lacks: str | None) -> str:
    reason = lacks or "its files were still changing"
    remedy = remedy_for(checkpoint)
    return f"not measured: {reason}." + (f" {remedy}" if remedy else "")


def _files_at(path: Path) -> list[Path]:
    """A weights file, or those in a folder of that name, as zero_to_fp32.py writes it."""
    return sorted(path.glob("*.bin")) if path.is_dir() else [path] * path.exists()


def _signature(checkpoint: Path) -> Signature:
    """Size and time of every file: a trainer writes its own state last."""
    entries = []
    # A file or folder that is removed while it is listed: the next look sees another signature.
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            state = path.stat()
            changed = max(state.st_mtime_ns, state.st_ctime_ns)  # the first can be set back
            entries.append((str(path.relative_to(checkpoint)), state.st_size, changed))
    return tuple(entries)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _is_whole(path: Path) -> bool:
    """Whether a weights file is as long as it says; older pickles do not say, and count as soon as they hold a byte."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if path.suffix == ".safetensors":
                length = int.from_bytes(start, "little")
                if length > size:
                    return False
                header = json.loads(file.read(length))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                return bool(size == file.tell() + max(ends, default=0))
        return zipfile.is_zipfile(path) if start.startswith(b"PK") else size > 0
    # A header cut short, of another kind than headers are, or not there any more.
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return False
