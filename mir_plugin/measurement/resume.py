"""What lets a killed run continue and a finished one rest: finished layers on disk, and the request a result answers.

A layer's statistics are kept, its hidden states are not: a resumed run repeats the forward passes of finished layers
and skips their statistics.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mir_plugin import __version__
from mir_plugin.errors import MirError
from mir_plugin.files.atomic import not_writable, write_atomically
from mir_plugin.files.fingerprint import IN_MEMORY, fingerprint, folder_fingerprint
from mir_plugin.files.strict_json import json_document, read_as
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.weights.device import chosen_device
from mir_plugin.results import (
    LayerDistance,
    MirConfig,
    MirResult,
    is_filed_under,
)

# Loading options that change how fast and in which memory a result is made, not the result.
WITHOUT_EFFECT = frozenset({"device_memory"})


@dataclass(frozen=True)
class FinishedLayer:
    """One layer's distance and the samples' influences on it; None when they were not asked for."""

    distance: LayerDistance
    influences: tuple[float, ...] | None


class Journal:
    """The finished layers of one measurement, one JSON line each, behind a line with the key of the measurement."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, key: str) -> dict[int, FinishedLayer]:
        """Layers that an earlier run of the same key finished; what another key left is removed.

        A last line that a kill cut short is dropped.
        """
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        header = json.dumps({"key": key})
        finished: dict[int, FinishedLayer] = {}
        if lines and lines[0] == header:
            for line in lines[1:]:
                try:
                    layer = read_as(FinishedLayer, json_document(line))
                except (ValueError, TypeError):
                    break
                finished[layer.distance.layer] = layer
        write_atomically(self.path, "\n".join([header, *map(_line, finished.values())]) + "\n")
        return finished

    def add(self, layer: FinishedLayer) -> None:
        """Append one layer; it is on disk when this returns. Raises MirError if it cannot be."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(layer) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise not_writable(self.path, error) from error

    def remove(self) -> None:
        """Forget the layers: their result is saved."""
        self.path.unlink(missing_ok=True)


def loading_fingerprint(load: LoadOptions, further: Mapping[str, Any] | None = None) -> str:
    """Hash of how a checkpoint is loaded: options, and the content of folders among them, wherever these lie.

    Of the device only the kind counts, not which one of several it is.

    Args:
        further: what else changes the result, name → value.
    """
    device = load.device if load.device != "auto" else chosen_device("auto").type
    options = {**dataclasses.asdict(load), "device": device.partition(":")[0], **(further or {})}
    asked = {name: _content(value) for name, value in options.items() if name not in WITHOUT_EFFECT}
    return fingerprint(asked)


def request_fingerprint(folder: Path, loading: str, config: MirConfig, samples_fingerprint: str) -> str:
    """Hash of what is asked for, without loading a weight: checkpoint files, loading, protocol and samples.

    Args:
        folder: the checkpoint's; for one on the hub, its local copy.
        loading: as ``loading_fingerprint``.
    """
    files = folder_fingerprint([folder])
    asked = [str(folder.resolve()), files, loading, dataclasses.asdict(config), samples_fingerprint, __version__]
    return fingerprint(asked)


def finished_result(path: Path, request: str, checkpoint: Path, *, with_uncertainty: bool) -> MirResult | None:
    """The result at ``path`` if it answers this very request of the same files, else None: it may be replaced.

    Raises:
        MirError: if it is the result of another checkpoint, which is not to be replaced unasked.
    """
    if not path.is_file():
        return None
    try:
        result = MirResult.load(path)
    except MirError:  # not ours, or of another version: no answer to anything
        return None
    asked, files = result.fingerprints.get("request"), files_fingerprint(result.facts)
    if asked != request or (files is not None and files != result.fingerprints["checkpoint"]):
        require_same_checkpoint(path, (result.checkpoint, result.place), checkpoint, "replace it with --force")
        return None
    return result if result.uncertainty or not with_uncertainty else None


def files_fingerprint(facts: Mapping[str, Any]) -> str | None:
    """Hash of all folders that a checkpoint was loaded from, as they are now; None if they are unknown.

    A vision tower or base LLM that only the checkpoint's config names counts here, and not in the request.
    """
    if not facts.get("source_folders"):
        return None
    try:
        return folder_fingerprint(Path(folder) for folder in facts["source_folders"])
    except MirError:
        return "gone"


def folders_of(result: MirResult) -> tuple[str, ...]:
    """The folders whose files the result's checkpoint fingerprint is that of; none where an adapter names none."""
    in_memory = str(result.fingerprints.get("checkpoint", "")).startswith(IN_MEMORY)
    return () if in_memory else tuple(str(folder) for folder in result.facts.get("source_folders", ()))


def changed_since(folders: Sequence[str], checkpoint_fingerprint: str) -> bool:
    """Whether a checkpoint's folders hold other files than when its fingerprint was taken.

    False where they are gone: trainings delete checkpoints, and what was measured still counts.
    """
    paths = [Path(folder) for folder in folders]
    if not paths or not all(path.is_dir() for path in paths):
        return False
    try:
        return folder_fingerprint(paths) != checkpoint_fingerprint
    except MirError:  # being written
        return True


def require_same_checkpoint(path: Path, filed: tuple[str, str], checkpoint: Path, otherwise: str) -> None:
    """Keep what was computed of one checkpoint from being replaced by what is computed of another.

    Args:
        filed: name and place of the checkpoint that the file at ``path`` is of.
        otherwise: what to do but to name another folder, for the message.
    Raises:
        MirError: if that is not ``checkpoint``; names both.
    """
    if not is_filed_under(*filed, checkpoint):
        raise MirError(
            f"{path} belongs to {filed[1] or filed[0]}, not to {checkpoint}. Choose another folder with --out, or "
            f"{otherwise}."
        )


def _content(value: Any) -> str:
    if isinstance(value, Path) and value.is_dir():
        return folder_fingerprint([value])
    return str(value)


def _line(layer: FinishedLayer) -> str:
    return json.dumps(dataclasses.asdict(layer))
