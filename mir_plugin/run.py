"""One measurement, as a straight line: samples → features of each layer → distances → MIR."""

from __future__ import annotations

import dataclasses
import datetime
import resource
import sys
import time

import torch

from mir_plugin.engine import check_replay, layer_features
from mir_plugin.errors import MirError
from mir_plugin.fingerprint import fingerprint, versions
from mir_plugin.mir import layer_distance, mir
from mir_plugin.results import LayerDistance, MirConfig, MirResult
from mir_plugin.samples import SampleSet
from mir_plugin.types import ModelAdapter

ESTIMATOR = "exact"


def measure(
    adapter: ModelAdapter,
    sample_set: SampleSet,
    config: MirConfig | None = None,
    *,
    checkpoint: str,
    host: str = "mir",
    batch_size: int = 1,
) -> MirResult:
    """Measure MIR of a loaded checkpoint on a sample set.

    Args:
        checkpoint: what the result is filed under; a path or a hub name.
        host: the program this runs in.
        batch_size: samples per forward pass; the result does not depend on it beyond rounding.
    Raises:
        MirError: for samples that cannot be used, features that are not finite, or too few tokens.
    """
    config = config or MirConfig()
    started = time.perf_counter()
    check = check_replay(adapter, sample_set.samples[0])
    checked = time.perf_counter()
    layers: list[LayerDistance] = []
    statistics_seconds = 0.0
    for features in layer_features(adapter, sample_set.samples, batch_size=batch_size, check=check):
        begun = time.perf_counter()
        layers.append(layer_distance(features, config))
        statistics_seconds += time.perf_counter() - begun
    finished = time.perf_counter()

    used = versions()
    return MirResult(
        checkpoint=checkpoint,
        family=adapter.family,
        mir=mir([layer.distance for layer in layers]),
        mir_published=_mir_or_none([layer.distance_published for layer in layers]),
        mir_published_upper=mir([layer.distance_published_upper for layer in layers]),
        n_samples=len(sample_set.samples),
        estimator=ESTIMATOR,
        config=config,
        fingerprints={
            "samples": sample_set.fingerprint,
            "protocol": fingerprint([dataclasses.asdict(config), ESTIMATOR, adapter.facts["prompt_template"]]),
            "checkpoint": adapter.facts["checkpoint_fingerprint"],
            "versions": fingerprint(dict(used)),
        },
        layers=tuple(layers),
        facts=adapter.facts,
        samples=sample_set.description,
        engine={"path": check.path, "reason": check.reason, "batch_size": batch_size, "device": str(adapter.device)},
        timing={
            "check": checked - started,
            "forward": finished - checked - statistics_seconds,
            "statistics": statistics_seconds,
            "total": finished - started,
        },
        peak_memory=_peak_memory(),
        host=host,
        versions=used,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _mir_or_none(distances: list[float]) -> float | None:
    """The published estimator subtracts a product, not its root, so its sum can be negative: then it has no value."""
    try:
        return mir(distances)
    except MirError:
        return None


def _peak_memory() -> dict[str, int]:
    """Bytes: highest resident set of the process so far, and of each accelerator's allocator."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak |= {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())}
    return peak
