"""Reads ``mir.json`` files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import dtype_of, inputs_of
from mir_plugin.reports.read.identity import PATH, checkpoint_ref
from mir_plugin.reports.read.records import (
    UNSTATED,
    CheckpointRef,
    Comparability,
    Measurement,
    ParsedSources,
    Problem,
    Run,
)
from mir_plugin.results import MirResult


def read_mir_json(path: Path, beside: CheckpointRef | None = None) -> ParsedSources:
    """One measurement, and those on fewer samples that it went through; or one problem that names the file.

    Args:
        beside: the model in whose output folder the file lies; the two are then one checkpoint.
    """
    try:
        result = MirResult.load(path)
    except MirError as error:
        what = str(error).removeprefix(f"{path} ")
        remedy = "Or delete it." if path.name.endswith("mir.json") else "For scores, give a table (CSV or XLSX)."
        return ParsedSources(problems=(Problem("error", "unreadable", str(path), what, remedy),))
    run = Run(
        run_id=str(path),
        host=result.host,
        checkpoint=result.checkpoint,
        source=str(path),
        date=result.created,
        tasks=("mir",),
        fingerprints=result.fingerprints,
        versions=result.versions,
    )
    # Of several checkpoints that took as many samples as they needed, those with the same number are comparable.
    looks = (result, *(result.at(look.n_samples) for look in reversed(result.looks)))
    return ParsedSources(measurements=tuple(measurement_of(one, str(path), beside) for one in looks), runs=(run,))


def measurement_of(result: MirResult, run_id: str, beside: CheckpointRef | None = None) -> Measurement:
    """What a report keeps of a result; ``beside`` is another way to know its checkpoint by."""
    weights = result.fingerprints.get("checkpoint", "")
    checkpoint = checkpoint_ref(result.checkpoint, weights, place=result.place, date=result.created)
    if not result.place and not checkpoint.keys[0].startswith(PATH):
        checkpoint = replace(checkpoint, root=str(Path(run_id).absolute().parent.parent))
    if beside:
        checkpoint = replace(checkpoint, keys=(*checkpoint.keys, *beside.keys))
    low, high = result.uncertainty.get("low"), result.uncertainty.get("high")
    return Measurement(
        checkpoint=checkpoint,
        mir=result.mir,
        comparability=Comparability(
            estimator=result.estimator,
            samples=result.fingerprints.get("samples", UNSTATED),
            protocol=result.fingerprints.get("protocol", UNSTATED),
            dtype=dtype_of(result) or UNSTATED,
            inputs=inputs_of(result),
        ),
        mir_published=result.mir_published,
        mir_published_upper=result.mir_published_upper,
        mir_standard_error=_number_or_none(result.uncertainty.get("standard_error")),
        mir_interval=(float(low), float(high)) if low is not None and high is not None else None,
        mir_at_equal_length=result.mir_at_equal_length,
        length_share=result.length_share,
        fragile=result.fragile,
        n_samples=result.n_samples,
        layers=result.layers,
        date=result.created,
        run_id=run_id,
        result=result,
    )


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
