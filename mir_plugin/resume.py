"""What lets a killed run continue and a finished one rest: finished layers on disk, and the request a result answers.

A layer's statistics are kept, its hidden states are not: a resumed run repeats the forward passes of finished layers
and skips their statistics.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mir_plugin import __version__
from mir_plugin.errors import MirError
from mir_plugin.fingerprint import fingerprint, folder_fingerprint
from mir_plugin.results import LayerDistance, MirConfig, MirResult, write_atomically

# A file on its way to its name exists for milliseconds; one older than this was left by a killed run.
STRAY_AFTER_SECONDS = 60
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        header = json.dumps({"key": key})
        finished: dict[int, FinishedLayer] = {}
        if lines and lines[0] == header:
            for line in lines[1:]:
                try:
                    layer = _finished_layer(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    break
                finished[layer.distance.layer] = layer
        write_atomically(self.path, "\n".join([header, *map(_line, finished.values())]) + "\n")
        return finished

    def add(self, layer: FinishedLayer) -> None:
        """Append one layer; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(layer) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget the layers: their result is saved."""
        self.path.unlink(missing_ok=True)


def request_fingerprint(
    checkpoint: Path, options: Mapping[str, Any], config: MirConfig, samples_fingerprint: str
) -> str:
    """Hash of what is asked for, without loading a weight: checkpoint files, loading options, protocol and samples.

    Args:
        options: how to load; every ``Path`` among the values that is a folder counts by its files too. A vision tower
            that only the checkpoint's config names counts by that name.
    """
    folders = [checkpoint, *(value for value in options.values() if isinstance(value, Path))]
    files = [folder_fingerprint([folder]) if folder.is_dir() else None for folder in folders]
    asked = {name: str(value) for name, value in options.items() if name not in WITHOUT_EFFECT}
    return fingerprint(
        [str(checkpoint.absolute()), files, asked, dataclasses.asdict(config), samples_fingerprint, __version__]
    )


def finished_result(path: Path, request: str, *, with_uncertainty: bool) -> MirResult | None:
    """The result at ``path`` if it answers this very request, else None."""
    if not path.is_file():
        return None
    try:
        result = MirResult.load(path)
    except MirError:  # not ours, or of another version: no answer to anything
        return None
    answers = result.fingerprints.get("request") == request and (bool(result.uncertainty) or not with_uncertainty)
    return result if answers else None


def remove_stray_files(folder: Path) -> None:
    """Remove half-written files that killed runs left in an output folder."""
    for stray in folder.glob(".*.part"):
        if time.time() - stray.stat().st_mtime > STRAY_AFTER_SECONDS:
            stray.unlink(missing_ok=True)


def _line(layer: FinishedLayer) -> str:
    return json.dumps({"distance": dataclasses.asdict(layer.distance), "influences": layer.influences})


def _finished_layer(data: Mapping[str, Any]) -> FinishedLayer:
    influences = data["influences"]
    return FinishedLayer(LayerDistance(**data["distance"]), None if influences is None else tuple(influences))
