"""One measurement, as a straight line: samples → features of each layer → distances → MIR."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mir_plugin.engine.batches import default_batch_size, free_memory, lowered
from mir_plugin.engine.features import features_in_step, layer_features
from mir_plugin.engine.inputs import ReceivedInputs, described
from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.engine.memory import estimate_memory, require_disk_space
from mir_plugin.engine.precision import full_float32
from mir_plugin.engine.replay import ReplayCheck, check_replay
from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import fingerprint, folder_fingerprint, versions
from mir_plugin.measurement.checkpoint_names import place_of
from mir_plugin.measurement.diagnostics import fragilities, length_share, mir_at_equal_length
from mir_plugin.measurement.resume import FinishedLayer, Journal
from mir_plugin.measurement.statistics import Statistics
from mir_plugin.metric.layer import mir
from mir_plugin.metric.uncertainty import METHOD, WITH_DELETIONS, heavy_groups, uncertainty
from mir_plugin.processes import ALONE, Group, OtherProcessError
from mir_plugin.results import MirConfig, MirResult
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
    kept: KeptFeatures | None = None,
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
        kept: features of earlier measurements of the same checkpoint in this process, whose samples do not run again;
            takes the features of the others.
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
    to_run = kept.begin(samples) if kept else samples
    with group.agreed("checking the replay of decoder layers"):
        # Where layers are gathered from all processes, all check, on the same sample.
        checked_on = sample_set.samples if adapter.decoder.collective else samples
        check = check_replay(adapter, checked_on[0]) if checked_on else None
        batch_size = batch_size or default_batch_size(adapter, to_run)
        most = min(group.size, len(sample_set.samples))
        held = layers_held(adapter, samples, check, most) if check and samples else (2, most)
    # The same in all processes: they work in one order.
    n_buffers, n_together = (min(of_all) for of_all in zip(*group.all_gather_object(held), strict=True))
    with group.agreed("estimating the memory"):
        n_held = n_buffers + n_together - 1
        estimate = estimate_memory(adapter, samples, check, n_held) if check and samples else None
        if estimate:
            logger.info("memory that the run needs, estimated: %s", estimate)
            require_disk_space(estimate)
    checked = time.perf_counter()
    groups: tuple[int, ...] = sample_set.groups if with_uncertainty else ()
    heavy: tuple[int, ...] = ()
    statistics = Statistics(adapter.device, config, groups, group, n_behind=n_buffers - 1, n_together=n_together)
    layers_of_all = _Layers(adapter, to_run, batch_size, check, group, received, n_buffers, sample_set.samples[0])
    for features in layers_of_all:
        features = kept.joined(features, samples) if kept else features
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
    own_inputs = kept.end(received.in_order(), samples) if kept else received.in_order()
    of_all = group.all_gather_object((own_inputs, received.compute_dtype))
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
            "batch_size": layers_of_all.batch_size,
            "overlapped": n_buffers == 2,
            "layers_together": n_together,
            "memory_estimate": dataclasses.asdict(estimate) if estimate else {},
            "device": str(adapter.device),
            "processes": group.size,
            "resumed_layers": n_resumed,
            "kept_samples": len(samples) - len(to_run),
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


class _Layers:
    """Features of this process's samples at layers 1..L; without rows where it has no samples.

    A process that fails to make them ends all processes with its cause. Where weights are gathered from all processes
    and one runs out of memory, all begin anew with half as many samples per forward pass.

    Attributes:
        batch_size: the last one, for processes in step.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        samples: Sequence[Sample],
        batch_size: int,
        check: ReplayCheck | None,
        group: Group,
        received: ReceivedInputs,
        n_buffers: int,
        idle: Sample,
    ) -> None:
        self._adapter, self._samples, self._check, self._group = adapter, samples, check, group
        self._received, self._n_buffers, self._idle = received, n_buffers, idle
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[TokenFeatures]:
        given = 0
        while True:
            try:
                for features in self._from_first():
                    if features.layer > given:  # else it was given when batches were larger
                        given = features.layer
                        yield features
                return
            except Exception as error:  # whatever it is, the other processes have to know whether all begin anew
                if not self._adapter.decoder.collective:
                    raise
                own = isinstance(error, torch.cuda.OutOfMemoryError)
                halves = None if isinstance(error, OtherProcessError) else own and self.batch_size > 1
                if set(self._group.all_gather_object(halves)) - {None} != {True}:
                    raise
            if own:  # not before the error and its frames, which hold tensors, are gone
                self.batch_size = lowered(self.batch_size)

    def _from_first(self) -> Iterator[TokenFeatures]:
        n_own = -(-len(self._samples) // self.batch_size)
        with closing(self._own(max(self._group.all_gather_object(n_own)))) as own:
            for k in range(1, len(self._adapter.decoder.layers) + 1):
                with self._group.agreed(f"running decoder layer {k}"):
                    features = next(own)
                # Process 0 has samples whenever any process has; the others may need to learn the width from it.
                described = (features.vision.shape[1], features.vision.dtype) if features else (0, None)
                width, dtype = self._group.broadcast(described)
                nothing = torch.zeros(0, width, dtype=dtype, device=self._adapter.device)
                yield features or TokenFeatures(k, nothing, nothing, (), ())

    def _own(self, n_passes: int) -> Generator[TokenFeatures | None, None, None]:
        """Of this process; None for each layer where it has no samples."""
        if self._adapter.decoder.collective and self._check:
            yield from features_in_step(
                self._adapter,
                self._samples,
                batch_size=self.batch_size,
                check=self._check,
                received=self._received,
                n_buffers=self._n_buffers,
                n_passes=n_passes,
                idle=self._idle,
            )
        elif self._samples:
            yield from layer_features(
                self._adapter,
                self._samples,
                batch_size=self.batch_size,
                check=self._check,
                received=self._received,
                n_buffers=self._n_buffers,
            )
        else:
            yield from [None] * len(self._adapter.decoder.layers)


def _require_unchanged(adapter: ModelAdapter, checkpoint: str) -> None:
    """Raise CheckpointChangedError if the files of a checkpoint are not those whose fingerprint was taken."""
    folders = adapter.facts.get("source_folders")
    if folders and folder_fingerprint(map(Path, folders)) != adapter.facts["checkpoint_fingerprint"]:
        raise CheckpointChangedError(
            f"{checkpoint} changed while it was measured, so the result would mix old and new weights. Run the command "
            "again when nothing writes to it any more."
        )


def layers_held(adapter: ModelAdapter, samples: Sequence[Sample], check: ReplayCheck, most: int) -> tuple[int, int]:
    """Buffers of a layer's features, and layers whose features are kept for statistics together.

    Two buffers let statistics run beside the next layer's forward passes: on a GPU that has memory for both. A CPU has
    no core to spare for it, and a depth-first run no forward passes left.

    Args:
        most: processes that layers can be dealt out to.
    """
    free = free_memory(adapter.device)
    if free is None:
        return 1, most
    estimate = estimate_memory(adapter, samples, check)
    weights = estimate.decoder if adapter.decoder.streamed else 0  # resident ones are there already
    room = free - weights - estimate.statistics
    n_buffers = 2 if check.path != "depth-first" and room > 2 * estimate.features else 1
    further = room // estimate.features - n_buffers
    return n_buffers, 1 + max(0, min(further, most - 1))


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
