"""What a sweep would do, how long that takes and how much memory, without measuring."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from mir_plugin.engine.features import layer_features
from mir_plugin.engine.memory import estimate_memory
from mir_plugin.engine.precision import full_float32
from mir_plugin.engine.replay import check_replay
from mir_plugin.errors import MirError
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.results import PARTIAL_NAME, RESULT_NAME, MirResult
from mir_plugin.selection.sweep import Measured, Sweep
from mir_plugin.selection.sweep_measuring import SweepMeasuring


@dataclass(frozen=True)
class PlannedCheckpoint:
    """One checkpoint that was asked for, and what would be done about it."""

    name: str
    checkpoint: str
    what: str
    to_measure: bool


@dataclass(frozen=True)
class Cost:
    """Of one checkpoint.

    Attributes:
        seconds: from loading to the result.
        memory: of the measurement, in words.
        basis: what both are known from.
    """

    seconds: float
    memory: str
    basis: str


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do.

    Attributes:
        cost: None where nothing is to be measured.
        at_most: whether fewer samples may do.
    """

    checkpoints: tuple[PlannedCheckpoint, ...]
    cost: Cost | None
    at_most: bool = False

    @property
    def n_to_measure(self) -> int:
        """Of the checkpoints."""
        return sum(one.to_measure for one in self.checkpoints)

    @property
    def seconds(self) -> float:
        """All together."""
        return self.n_to_measure * self.cost.seconds if self.cost else 0.0


def planned(sweep: Sweep, measuring: SweepMeasuring) -> SweepPlan:
    """Look at every checkpoint that a sweep was asked for.

    The cost is that of results in the output folder that were measured alike; where there are none, the first
    checkpoint is loaded and its first two layers are timed.

    Args:
        sweep: with its checkpoints; nothing is written.
        measuring: what would be done with each.
    """
    plans: list[PlannedCheckpoint] = []
    first: Measurement | None = None
    for entry in (one for one in sweep.entries if one.asked):
        path = sweep.out_dir / entry.name / RESULT_NAME
        measurement = measuring.measurement(entry.checkpoint, path)
        what, to_measure = _what_to_do(measurement, functools.partial(measuring.kept, entry.checkpoint, path))
        first = first or (measurement if to_measure else None)
        plans.append(PlannedCheckpoint(entry.name, str(entry.checkpoint), what, to_measure))
    if first is None:
        return SweepPlan(tuple(plans), None)
    return SweepPlan(tuple(plans), known_cost(sweep) or _timed_cost(first), at_most=measuring.nested is not None)


def _what_to_do(measurement: Measurement, kept: Callable[[], Measured | None]) -> tuple[str, bool]:
    try:
        if kept():
            return "kept: measured before", False
        family = measurement.checkpoint.spec.name
    except MirError as error:
        return f"would fail: {error}", False
    try:
        n_layers = (measurement.folder / PARTIAL_NAME).read_bytes().count(b"\n") - 1
    except OSError:
        n_layers = 0
    return f"to measure ({family})" + (f", from layer {n_layers + 1}" if n_layers > 0 else ""), True


def known_cost(sweep: Sweep) -> Cost | None:
    """Of one checkpoint, by results in the output folder that were measured alike; None without any."""
    results = [one.result for one in sweep.entries if one.result and _is_whole(one.result)]
    if not results:
        return None
    of_process = max(result.peak_memory.get("host", 0) for result in results)
    on_device = max((n for one in results for kind, n in one.peak_memory.items() if kind != "host"), default=0)
    memory = f"{of_process / 1e9:.1f} GB in the process" + (
        f", {on_device / 1e9:.1f} GB on the device" * bool(on_device)
    )
    device = results[-1].engine.get("device", "")
    seconds = statistics.fmean(result.timing["total"] for result in results)
    return Cost(seconds, memory, f"{len(results)} earlier result{'s' * (len(results) > 1)} on {device}")


def _is_whole(result: MirResult) -> bool:
    """Whether its duration is that of all samples."""
    return "total" in result.timing and (not result.planned or result.n_samples == result.planned[-1])


@full_float32()
def _timed_cost(measurement: Measurement) -> Cost:
    """Time loading, the way to the first layer, the second layer, and the statistics of one layer."""
    started = time.perf_counter()
    adapter, samples = measurement.load(), measurement.samples.samples
    check = check_replay(adapter, samples[0])
    memory = str(estimate_memory(adapter, samples, check))
    n_layers = len(adapter.decoder.layers)
    features = layer_features(adapter, samples, batch_size=measurement.batch_size, check=check)
    layer = PooledLayer.of(next(features), measurement.protocol)
    first = time.perf_counter()
    maps = layer.transport()
    layer.influences(maps, layer.layer_distance(maps.trace_term).distance)
    of_statistics = time.perf_counter() - first
    begun = time.perf_counter()
    next(features, None)
    of_layer = time.perf_counter() - begun
    seconds = first - started + (n_layers - 1) * of_layer + n_layers * of_statistics
    basis = f"loading {measurement.checkpoint.name} and timing 2 of its {n_layers} layers on {adapter.device}"
    return Cost(seconds, f"{memory}, besides vision tower, projector and embeddings", basis)


def as_json(plan: SweepPlan) -> dict[str, object]:
    """The plan as plain JSON values."""
    return {**dataclasses.asdict(plan), "n_to_measure": plan.n_to_measure, "seconds": plan.seconds}
