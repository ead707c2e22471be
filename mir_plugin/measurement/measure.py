"""One measurement, as a straight line: samples → features of each layer → distances → MIR."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mir_plugin.engine.batches import default_batch_size, free_memory
from mir_plugin.engine.features import features_in_step, layer_features
from mir_plugin.engine.inputs import ReceivedInputs, described
from mir_plugin.engine.memory import estimate_memory, require_disk_space
from mir_plugin.engine.overlap import OnHost, SecondStream
from mir_plugin.engine.precision import full_float32
from mir_plugin.engine.replay import ReplayCheck, check_replay
from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import fingerprint, folder_fingerprint, versions
from mir_plugin.measurement.checkpoint_names import place_of
from mir_plugin.measurement.diagnostics import fragilities, length_share, mir_at_equal_length
from mir_plugin.measurement.pooled import PooledLayer, grouped_influences
from mir_plugin.measurement.resume import FinishedLayer, Journal
from mir_plugin.metric.layer import mir
from mir_plugin.metric.uncertainty import METHOD, WITH_DELETIONS, heavy_groups, uncertainty
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import LayerDistance, MirConfig, MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import ModelAdapter, TokenFeatures

logger = logging.getLogger(__name__)

ESTIMATOR = "exact"


class CheckpointChangedError(MirError):
    """The files of a checkpoint changed while it was measured: what was computed is of neither state."""


@full_float32()
def measure(
    adapter: ModelAdapter,
    sample_set: SampleSet,
    config: MirConfig | None = None,
    *,
    checkpoint: str,
    place: str | None = None,
    host: str = "mir",
    batch_size: int | None = None,
    with_uncertainty: bool = True,
    group: Group = ALONE,
    journal: Journal | None = None,
    request: str | None = None,
    watch: Callable[[TokenFeatures], None] | None = None,
) -> MirResult:
    """Measure MIR of a loaded checkpoint on a sample set.

    Several processes measure together when each calls this with its own copy of the adapter, the *whole* sample set
    and their ``group`` (``mir_plugin.processes.current_group()``): each runs its share of the samples, and all
    return the same result, which is that of one process to rounding.

    Args:
        checkpoint: what the result is filed under; a path or a hub name.
        place: the folder it is or will be saved in, absolute; None takes what ``checkpoint`` means now.
        host: the program this runs in.
        batch_size: samples per forward pass; the result does not depend on it beyond rounding. None: 1 on a CPU,
            several on an accelerator.
        with_uncertainty: also take the samples' influences, for standard errors and paired comparisons.
        group: the processes that measure together; this one alone by default.
        journal: where finished layers are kept, so that a killed run continues; only process 0 touches it.
        request: fingerprint of what was asked for, stored with the result.
        watch: called with every layer's features of this process while they are held, layers 1..L in order.
    Raises:
        MirError: for samples that cannot be used, features that are not finite, too few tokens, or files of the
            checkpoint that change meanwhile; in every process of the group if it happens in one.
    """
    config = config or MirConfig()
    used = versions()
    received = ReceivedInputs()
    fingerprints = {
        "samples": sample_set.fingerprint,
        "protocol": fingerprint([dataclasses.asdict(config), ESTIMATOR, adapter.facts["prompt_template"]]),
        "checkpoint": adapter.facts["checkpoint_fingerprint"],
        "versions": fingerprint(dict(used)),
        **({"request": request} if request else {}),
    }
    journal = journal if group.rank == 0 else None
    started = time.perf_counter()
    with group.agreed("reading the finished layers of an earlier run"):
        found = (
            journal.open(fingerprint([fingerprints, with_uncertainty and [METHOD, WITH_DELETIONS]])) if journal else {}
        )
    finished = group.broadcast(found)
    n_resumed = len(finished)

    samples = group.shard(sample_set.samples)
    with group.agreed("checking the replay of decoder layers"):
        # Where layers are gathered from all processes, all check, on the same sample.
        checked_on = sample_set.samples if adapter.decoder.collective else samples
        check = check_replay(adapter, checked_on[0]) if checked_on else None
        batch_size = batch_size or default_batch_size(adapter, samples)
        fits = check is None or not samples or overlaps(adapter, samples, check)
    n_buffers = 2 if all(group.all_gather_object(fits)) else 1  # in all processes or in none: they work in one order
    with group.agreed("estimating the memory"):
        estimate = estimate_memory(adapter, samples, check, n_buffers) if check and samples else None
        if estimate:
            logger.info("memory that the run needs, estimated: %s", estimate)
            require_disk_space(estimate)
    checked = time.perf_counter()
    groups: tuple[int, ...] = sample_set.groups if with_uncertainty else ()
    heavy: tuple[int, ...] = ()
    statistics = _Statistics(adapter.device, config, groups, group, n_behind=n_buffers - 1)
    for features in _layers(adapter, samples, batch_size, check, group, received, n_buffers, sample_set.samples[0]):
        if watch:
            watch(features)
        if features.layer == 1:
            heavy = _heavy_groups(features, groups, group)
        if features.layer not in finished:
            statistics.add(features, heavy)
        for layer in statistics.finished():
            finished[layer.distance.layer] = layer
            if journal:
                journal.add(layer)
    for layer in statistics.rest():
        finished[layer.distance.layer] = layer
        if journal:
            journal.add(layer)
    ended = time.perf_counter()
    with group.agreed("looking at the checkpoint's files again"):
        if group.rank == 0:
            _require_unchanged(adapter, checkpoint)
    of_all = group.all_gather_object((received.in_order(), received.compute_dtype))
    inputs = described([sample for shard, _ in of_all for sample in shard], of_all[0][1], adapter)

    layers = tuple(layer.distance for _, layer in sorted(finished.items()))
    spread = _uncertainty(finished, len(groups), heavy)
    result = MirResult(
        checkpoint=checkpoint,
        place=place_of(checkpoint) if place is None else place,
        family=adapter.family,
        mir=mir([layer.distance for layer in layers]),
        mir_published=_mir_or_none([layer.distance_published for layer in layers]),
        mir_published_upper=mir([layer.distance_published_upper for layer in layers]),
        n_samples=len(sample_set.samples),
        estimator=ESTIMATOR,
        config=config,
        fingerprints={**fingerprints, "inputs": fingerprint(inputs)},
        layers=layers,
        facts=adapter.facts,
        inputs=inputs,
        samples=sample_set.description,
        engine={
            "path": check.path if check else "",
            "reason": check.reason if check else "",
            "batch_size": batch_size,
            "overlapped": n_buffers == 2,
            "memory_estimate": dataclasses.asdict(estimate) if estimate else {},
            "device": str(adapter.device),
            "processes": group.size,
            "resumed_layers": n_resumed,
        },
        timing={
            "check": checked - started,
            "forward": ended - checked - statistics.seconds,
            "statistics": statistics.seconds,
            "total": ended - started,
        },
        peak_memory=_peak_memory(),
        uncertainty=spread,
        mir_at_equal_length=mir_at_equal_length(layers),
        length_share=length_share(layers),
        fragile=fragilities(layers, spread),
        host=host,
        versions=used,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return group.broadcast(result)


def _layers(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    batch_size: int,
    check: ReplayCheck | None,
    group: Group,
    received: ReceivedInputs,
    n_buffers: int,
    idle: Sample,
) -> Iterator[TokenFeatures]:
    """Features of this process's samples at layers 1..L; without rows where it has no samples.

    A process that fails to make them ends all processes with its cause.
    """
    own: Iterator[TokenFeatures | None] | None = None
    if adapter.decoder.collective and check:
        own = features_in_step(
            adapter,
            samples,
            batch_size=batch_size,
            check=check,
            received=received,
            n_buffers=n_buffers,
            n_passes=max(group.all_gather_object(-(-len(samples) // batch_size))),
            idle=idle,
        )
    elif samples:
        own = layer_features(
            adapter, samples, batch_size=batch_size, check=check, received=received, n_buffers=n_buffers
        )
    for k in range(1, len(adapter.decoder.layers) + 1):
        with group.agreed(f"running decoder layer {k}"):
            features = next(own) if own else None
        # Process 0 has samples whenever any process has; the others may need to learn the width from it.
        width, dtype = group.broadcast((features.vision.shape[1], features.vision.dtype) if features else (0, None))
        nothing = torch.zeros(0, width, dtype=dtype, device=adapter.device)
        yield features or TokenFeatures(k, nothing, nothing, (), ())


def _require_unchanged(adapter: ModelAdapter, checkpoint: str) -> None:
    """Raise CheckpointChangedError if the files of a checkpoint are not those whose fingerprint was taken."""
    folders = adapter.facts.get("source_folders")
    if folders and folder_fingerprint(map(Path, folders)) != adapter.facts["checkpoint_fingerprint"]:
        raise CheckpointChangedError(
            f"{checkpoint} changed while it was measured, so the result would mix old and new weights. Run the command "
            "again when nothing writes to it any more."
        )


def overlaps(adapter: ModelAdapter, samples: Sequence[Sample], check: ReplayCheck) -> bool:
    """Whether statistics run beside the next layer's forward passes: on a GPU that has memory for two layers' features.

    A CPU has no core to spare for it, and a depth-first run no forward passes left.
    """
    free = free_memory(adapter.device)
    if free is None or check.path == "depth-first":
        return False
    estimate = estimate_memory(adapter, samples, check, n_buffers=2)
    weights = estimate.decoder if adapter.decoder.streamed else 0  # resident ones are there already
    return weights + estimate.features + estimate.statistics < free


class _BegunLayer:
    """A layer whose statistics were given to the device."""

    def __init__(
        self, features: TokenFeatures, heavy: Sequence[int], config: MirConfig, groups: Sequence[int], group: Group
    ) -> None:
        self._layer = PooledLayer.of(features, config, group)
        self._groups, self._group = groups, group
        with group.agreed(self._task):
            maps = self._layer.transport() if groups else None
            term = maps.trace_term if maps else self._layer.trace_term()
            self._route = term.route
            self._numbers = OnHost(self._layer.numbers(term))
        self._sums = OnHost(self._layer.sample_sums(maps)) if maps else None
        # Now, while the features are there: the next layer but one may take their place.
        self._without = {one: self._layer.distance_without(torch.tensor(groups) == one) for one in heavy}

    def finished(self) -> FinishedLayer:
        """The numbers, on the host. Collective."""
        with self._group.agreed(self._task):
            distance = self._distance()
        if self._sums is None:
            return FinishedLayer(distance, None)
        of_samples = self._layer.influences_of(self._sums.read(), distance.distance, distance.scale)
        return FinishedLayer(distance, grouped_influences(of_samples, self._groups, distance.distance, self._without))

    @property
    def _task(self) -> str:
        return f"the distance of layer {self._layer.layer}"

    def _distance(self) -> LayerDistance:
        return self._layer.distance_of(self._numbers.read().tolist(), self._route)


class _Statistics:
    """Takes layers' features and gives finished layers, at once or, beside the next layer's forward passes, later.

    Layer k is begun when layer k + 1 is queued, and read when layer k + 1 is begun: the device always has work, and
    the host waits for it once a layer, where the decomposition has to know whether a covariance is singular.

    Attributes:
        seconds: that the host spent here; where work overlaps, part of them are forward passes.
    """

    def __init__(
        self, device: torch.device, config: MirConfig, groups: Sequence[int], group: Group, n_behind: int
    ) -> None:
        self._device, self._n_behind = device, n_behind
        self._arguments = (config, groups, group)
        self._stream = SecondStream(device)
        self._queued: collections.deque[tuple[TokenFeatures, Sequence[int], Any]] = collections.deque()
        self._begun: collections.deque[_BegunLayer] = collections.deque()
        self.seconds = 0.0

    def add(self, features: TokenFeatures, heavy: Sequence[int]) -> None:
        """Take the next layer, and the groups of samples that are left out for standard errors."""
        self._queued.append((features, heavy, self._stream.mark()))

    def finished(self, n_behind: int | None = None) -> Iterator[FinishedLayer]:
        """Begin what has waited long enough, and give what is finished."""
        n_behind = self._n_behind if n_behind is None else n_behind
        if n_behind == 0:
            _wait_for(self._device)
        started = time.perf_counter()
        while len(self._queued) > n_behind:
            features, heavy, mark = self._queued.popleft()
            with self._stream.after(mark):
                self._begun.append(_BegunLayer(features, heavy, *self._arguments))
            self._stream.join()
        ready = [self._begun.popleft().finished() for _ in range(len(self._begun) - n_behind)]
        self.seconds += time.perf_counter() - started
        yield from ready

    def rest(self) -> Iterator[FinishedLayer]:
        """Give all that is left."""
        return self.finished(n_behind=0)


def _wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that the time is booked where it belongs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _heavy_groups(features: TokenFeatures, groups: Sequence[int], group: Group) -> tuple[int, ...]:
    """Groups of samples with a large share of the tokens, of all processes; none without groups. Collective."""
    of_all = group.all_gather_object((features.vision_counts, features.text_counts))
    vision, text = ([count for shard in of_all for count in shard[modality]] for modality in (0, 1))
    return heavy_groups(groups, vision, text) if groups else ()


def _uncertainty(finished: Mapping[int, FinishedLayer], n_samples: int, heavy: Sequence[int]) -> dict[str, Any]:
    layers = [layer for _, layer in sorted(finished.items())]
    influences = [layer.influences for layer in layers if layer.influences is not None]
    distances = [layer.distance.distance for layer in layers]
    return uncertainty(distances, influences, n_samples, heavy) if influences else {}


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
