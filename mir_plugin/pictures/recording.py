"""Pictures of a checkpoint, taken during its measurement."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import fingerprint
from mir_plugin.measurement.measurement import Measurement, lock
from mir_plugin.pictures.data import FILE_NAME, FOLDER_NAME, Pictures
from mir_plugin.pictures.tokens import PictureOptions, PictureRecorder, spread_layers
from mir_plugin.types import ModelAdapter


def record_pictures(measurement: Measurement, drawing: PictureOptions) -> Pictures:
    """Pictures of one checkpoint, recorded while it is measured and saved beside its mir.json; kept if they exist.

    Raises:
        MirError: if the checkpoint cannot be loaded or measured, or has no such layer.
    """
    existing = measurement.earlier()
    key = fingerprint([measurement.fingerprint, dataclasses.asdict(drawing)])
    data_path = measurement.folder / FOLDER_NAME / FILE_NAME
    if existing and (kept := _kept(data_path, key)):
        return kept
    with lock(measurement.folder, measurement.group):
        adapter = measurement.load()
        recorder = PictureRecorder(_with_layers(drawing, adapter))
        if existing:
            measurement.run_layers(adapter, recorder)
        else:
            measurement.measure(adapter, recorder)
        pictures = recorder.pictures(str(measurement.checkpoint.name), key)
        pictures.save(data_path)
    return pictures


def _with_layers(drawing: PictureOptions, adapter: ModelAdapter) -> PictureOptions:
    n_layers = len(adapter.decoder.layers)
    beyond = [layer for layer in drawing.layers if layer > n_layers]
    if beyond:
        raise MirError(f"--layers names layer {beyond[0]}; this checkpoint has {n_layers}.")
    return dataclasses.replace(drawing, layers=drawing.layers or spread_layers(n_layers))


def _kept(path: Path, key: str) -> Pictures | None:
    try:
        kept = Pictures.load(path)
    except MirError:  # none yet, or of another version
        return None
    return kept if kept.key == key else None
