"""From requests of the task `mir` to answers: pools all documents, measures once, answers each request.

Every answer is a JSON object with the pooled values, so that lmms-eval can keep passing strings around; the one for
the first document also holds the whole result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.processes import Group, current_group
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.tasks.lmms_eval.saved import Command, kept

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

    from mir_plugin.types import ModelAdapter

METRICS = ("mir", "mir_published", "mir_published_upper")
STANDARD_ERROR = "mir_stderr"


@dataclass(frozen=True)
class Measurement:
    """What a task wants measured; travels in its requests.

    Attributes:
        sample_set: document i is sample i.
        config: the protocol.
        asked_of: the model whose arguments chose the samples; None if none did.
        command: the command line, by which results are kept; None where a program calls lmms-eval.
    """

    sample_set: SampleSet
    config: MirConfig
    asked_of: object | None = None
    command: Command | None = None

    def __repr__(self) -> str:
        """Short, because lmms-eval prints whole requests (``--write_out``)."""
        return f"Measurement({len(self.sample_set)} samples, {self.sample_set.fingerprint[:16]}, {self.config})"


def answer_with_built_in_model(lm: Any, requests: Sequence[Instance]) -> list[str]:
    """``lmms.mir`` for models of lmms-eval itself.

    Raises:
        MirError: if the model holds no module that can be measured.
    """
    from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, checkpoint_name

    return answer(
        adapter_for(lm),
        requests,
        checkpoint=checkpoint_name(lm) or type(lm).__name__,
        asked=lm,
        batch_size=getattr(lm, "batch_size_per_gpu", 1),
    )


def answer(
    adapter: ModelAdapter, requests: Sequence[Instance], *, checkpoint: str, asked: object, batch_size: int = 1
) -> list[str]:
    """Measure every task among the requests once, over all processes' documents, and answer in request order.

    Padding that lmms-eval adds to keep processes in step is answered but never measured. Processes share the work, and
    each has the one result.

    Raises:
        MirError: if a measurement fails, on every process alike; or if another model's arguments chose the samples.
    """
    measurements: dict[str, Measurement] = {request.task_name: _measurement_of(request) for request in requests}
    for task, measurement in measurements.items():
        if measurement.asked_of is not None and measurement.asked_of is not asked:
            raise MirError(
                f"the samples of task {task!r} were chosen by arguments of {_described(measurement.asked_of)}, but "
                f"{_described(asked)} is measured. Build the task right after its own model, or choose samples by "
                "MIR_SAMPLES and its like instead of the model's arguments."
            )
    measured = {(r.task_name, cast("int", r.doc_id)) for r in requests if not r.metadata.get("__padding_only__")}
    doc_ids: dict[str, list[int]] = defaultdict(list)
    group = current_group()
    for task, doc_id in sorted(set().union(*group.all_gather_object(measured))):
        doc_ids[task].append(doc_id)

    adapter_limit: int | None = getattr(adapter, "max_batch", None)
    batch_size = min(batch_size, adapter_limit or batch_size)
    results: dict[str, MirResult] = {}
    for task in sorted(doc_ids):
        results[task] = _measured(
            adapter,
            subset(measurements[task].sample_set, doc_ids[task]),
            measurements[task],
            checkpoint,
            batch_size,
            group,
        )
    return [_answer_to(request, results[request.task_name], doc_ids[request.task_name]) for request in requests]


def _measured(
    adapter: ModelAdapter, samples: SampleSet, wanted: Measurement, checkpoint: str, batch_size: int, group: Group
) -> MirResult:
    """One measurement, kept beside lmms-eval's results where the command says where these go. Collective."""

    def now(request: str | None) -> MirResult:
        return measure(
            adapter,
            samples,
            wanted.config,
            checkpoint=checkpoint,
            host="lmms-eval",
            batch_size=batch_size,
            group=group,
            request=request,
        )

    if wanted.command is None:
        return now(None)
    request = wanted.command.request(adapter.facts, wanted.config, samples)
    return kept(now, request, wanted.command.path(request), group)


def _described(model: object) -> str:
    checkpoint = getattr(model, "pretrained", None)
    return f"{type(model).__name__} ({checkpoint})" if checkpoint else type(model).__name__


def subset(sample_set: SampleSet, indices: Sequence[int]) -> SampleSet:
    """The samples at these indices, ascending; the set itself when these are all."""
    if len(indices) == len(sample_set):
        return sample_set
    chosen = tuple(sample_set.samples[index] for index in indices)
    before = sample_set.description.get("choice") or range(len(sample_set))
    choice = [before[index] for index in indices]
    return SampleSet(chosen, {**sample_set.description, "n_samples": len(chosen), "choice": choice})


def _measurement_of(request: Instance) -> Measurement:
    return next(part for part in request.args if isinstance(part, Measurement))


def _answer_to(request: Instance, result: MirResult, doc_ids: Sequence[int]) -> str:
    whole = dataclasses.asdict(result)
    shared = {name: whole[name] for name in (*METRICS, "n_samples")}
    shared[STANDARD_ERROR] = result.uncertainty.get("standard_error")
    run = hashlib.sha256(result.to_json().encode()).hexdigest()[:16]
    first = request.doc_id == doc_ids[0]
    return json.dumps({"measurement": run, **shared, **({"result": whole} if first else {})}, allow_nan=False)
