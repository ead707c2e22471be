"""The task `mir` of lmms-eval: one document per sample, one pooled value."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval import evaluator
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import Task, TaskConfig
from lmms_eval.filters import build_filter_ensemble
from loguru import logger

from mir_plugin.errors import MirError
from mir_plugin.tasks.lmms_eval.hooks import options_of_latest_model, run_first
from mir_plugin.tasks.lmms_eval.measurement import METRICS, STANDARD_ERROR, Measurement
from mir_plugin.tasks.lmms_eval.saved import Command
from mir_plugin.tasks.options import OPTIONS, resolve

SPLIT = "samples"
LMMS_EVAL_FIELDS = ("task", "class", "task_alias", "tag", "metadata")


class MirTask(Task):
    """Measures MIR of the model that lmms-eval runs. YAML fields: those of ``MirOptions``.

    The whole ``MirResult`` ends up in lmms-eval's results file, under ``configs.<task>.metadata.mir_result``, and in
    the samples file as the answer to the first document.

    Raises:
        MirError: for an unknown field or bad samples; here, at construction, before any benchmark runs.
    """

    VERSION = 1
    OUTPUT_TYPE = "mir"

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:  # loads no dataset, so no super().__init__()
        fields = dict(config or {})
        unknown = sorted(fields.keys() - {*OPTIONS, *LMMS_EVAL_FIELDS})
        if unknown:
            known = ", ".join((*OPTIONS, *LMMS_EVAL_FIELDS))
            raise MirError(f"task {fields.get('task', 'mir')!r} has an unknown field {unknown[0]!r}; known: {known}.")
        model_args, model = options_of_latest_model()
        options = resolve(fields, model_args)
        chosen_by_model = "model_args" in options.origin.values()
        self._measurement = Measurement(options.sample_set(), options.config, model if chosen_by_model else None)
        self._metadata: dict[str, Any] = dict(fields.get("metadata") or {})
        self._config = TaskConfig(
            task=fields.get("task", "mir"),
            task_alias=fields.get("task_alias"),
            tag=fields.get("tag"),
            output_type=self.OUTPUT_TYPE,
            test_split=SPLIT,
            num_fewshot=0,
            metadata=self._metadata,
        )
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self._instances: list[Instance] = []
        self._documents = [{"sample_id": s.sample_id, "text": s.text} for s in self._measurement.sample_set.samples]

    @property
    def dataset(self) -> dict[str, list[dict[str, str]]]:
        """What lmms-eval shows models under the task's name."""
        return {SPLIT: self._documents}

    def has_training_docs(self) -> bool:
        """No: nothing is shown as an example."""
        return False

    def has_validation_docs(self) -> bool:
        """No: there is one split."""
        return False

    def has_test_docs(self) -> bool:
        """Yes: the samples."""
        return True

    def test_docs(self) -> list[dict[str, str]]:
        """One document per sample."""
        return self._documents

    @property
    def eval_docs_no_media(self) -> list[dict[str, str]]:
        """The documents; they hold no image anyway."""
        return self._documents

    @property
    def task_name(self) -> str:
        """Name under which results are filed."""
        return str(self._config.task)

    def get_config(self, key: str) -> Any:
        """A field of the task's configuration."""
        return getattr(self._config, key, None)

    def dump_config(self) -> dict[str, Any]:
        """The configuration for the results file; its ``metadata`` gets the result once there is one."""
        options = self._measurement.sample_set.description.get("options", {})
        return {**self._config.to_dict(), "metadata": self._metadata, "mir_options": options}

    def fewshot_context(self, doc: Mapping[str, str], *_: Any, **__: Any) -> str:
        """No prompt text: the protocol's prompt belongs to the model's adapter."""
        return ""

    def doc_to_text(self, doc: Mapping[str, str]) -> str:
        """As in ``fewshot_context``."""
        return ""

    def doc_to_target(self, doc: Mapping[str, str]) -> str:
        """What the assistant is made to say."""
        return doc["text"]

    def build_all_requests(self, **kwargs: Any) -> None:
        """Never from lmms-eval's request cache: its key knows the task's name but not its samples."""
        self._measurement = dataclasses.replace(self._measurement, command=Command.of(getattr(self, "args", None)))
        super().build_all_requests(**{**kwargs, "cache_requests": False, "rewrite_requests_cache": False})

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Instance:
        """One request per sample.

        ``do_sample`` tells lmms-eval's response cache that answers must not be reused: after a partial hit only the
        missed documents would reach the model, and a pooled value of these would pass for that of all.
        """
        sample_id = self._documents[doc_id]["sample_id"]
        arguments = (sample_id, {"do_sample": True}, self._measurement, doc_id, self.task_name, SPLIT)
        return Instance(request_type=self.OUTPUT_TYPE, arguments=arguments, idx=0, **kwargs)

    def override_metric(self, metric_name: str) -> None:
        """Not overridden: ``--predict_only`` skips the scoring of answers, and MIR scores none."""

    def process_results(self, doc: Mapping[str, str], results: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Per metric what the pooling needs; the first document's also carries the whole result."""
        answer = json.loads(results[0])
        common = {"measurement": answer["measurement"], "n_samples": answer["n_samples"]}
        # Named as lmms-eval names its own standard error of `mir`, and later in order, ours takes that one's place: the
        # host's is the spread of per-document values, of which a pooled metric has none.
        metrics = (*METRICS, STANDARD_ERROR) if answer[STANDARD_ERROR] is not None else METRICS
        items = {metric: {"value": answer[metric], **common} for metric in metrics}
        if "result" in answer:
            items[METRICS[0]]["result"] = answer["result"]
        return items

    def aggregation(self) -> dict[str, Callable[[list[dict[str, Any]]], float | None]]:
        """Metric → the one value that all documents of a measurement agree on."""
        return {metric: functools.partial(self._pooled, metric) for metric in (*METRICS, STANDARD_ERROR)}

    def higher_is_better(self) -> dict[str, bool]:
        """Lower is better throughout."""
        return dict.fromkeys((*METRICS, STANDARD_ERROR), False)

    def _pooled(self, metric: str, items: list[dict[str, Any]]) -> float | None:
        measurements = {item["measurement"] for item in items}
        n_samples = items[0]["n_samples"]
        if len(measurements) > 1 or len(items) != n_samples:
            # Not raised: lmms-eval would discard the results of all other tasks as well.
            logger.error(
                f"{self.task_name}: {len(items)} documents were answered by {len(measurements)} measurements, one of "
                f"which has {n_samples} samples. No value is reported; run again without --use_cache."
            )
            return None
        for item in items:
            if "result" in item:
                self._metadata["mir_result"] = item["result"]
        value = items[0]["value"]
        return None if value is None else float(value)


# Here and not in the manifest: lmms-eval's evaluator is still half imported when it loads the manifest.
run_first(evaluator, lambda task: isinstance(task, MirTask))
