"""Measures MIR where VLMEvalKit would ask questions: in ``infer_data``, with the model it has loaded or is about to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from mir_plugin.errors import MirError
from mir_plugin.files.strict_json import json_document
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, checkpoint_name
from mir_plugin.processes import current_group
from mir_plugin.tasks.host_internals import MODELS_BUILT_IN_INFERENCE
from mir_plugin.tasks.vlmevalkit.data_set import (
    RESULT_SUFFIX,
    MirDataSet,
    is_of_other_settings,
    is_outdated,
    prediction_of,
)
from mir_plugin.tasks.vlmevalkit.model import CheckpointModel
from mir_plugin.tasks.vlmevalkit.model_settings import settings_fingerprint

HOST = "vlmevalkit"
# Model names whose classes VLMEvalKit builds with its flag --use-vllm.
_VLLM_NAMES = ("Llama-4", "Qwen2-VL", "Qwen2.5-VL")

saved_results: list[Path] = []  # of this process, so that an error which ends the run can name them


@dataclass(frozen=True)
class Inference:
    """One call of ``vlmeval.inference.infer_data``, by the names of its parameters.

    Attributes:
        model: the loaded model, or its name where it is not loaded yet.
        out_file: where this process's answers go.
    """

    model: Any
    model_name: str
    work_dir: Path
    dataset: MirDataSet
    out_file: str
    use_vllm: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Inference:
        """From the arguments of a call; those that say how APIs are asked have no meaning here."""
        return cls(
            model=arguments["model"],
            model_name=arguments["model_name"],
            work_dir=Path(arguments["work_dir"]),
            dataset=arguments["dataset"],
            out_file=arguments["out_file"],
            use_vllm=bool(arguments.get("use_vllm")),
        )

    def path(self, suffix: str) -> Path:
        """A file of this model and data set, named as VLMEvalKit names its own."""
        return self.work_dir / f"{self.model_name}_{self.dataset.dataset_name}{suffix}"


def measured(call: Inference, host: ModuleType) -> Any:
    """Answer the data set's one row; returns the model, which VLMEvalKit uses for its next data set.

    An answer of an earlier run that VLMEvalKit has put into place (``--reuse``) is kept, and no model is loaded, while
    the checkpoint's files are unchanged.
    Several processes measure together, each with its own copy of the model; the whole result is saved beside the
    predictions.

    Args:
        host: ``vlmeval.inference``.
    Raises:
        MirError: if samples or model cannot be measured, on every process alike.
    """
    group = current_group()
    model, index = call.model, call.dataset.index
    with group.agreed("reading earlier answers"):
        answer = _earlier_answer(call)
    answer = group.broadcast(answer)
    if answer is None:
        with group.agreed("choosing the samples"):
            sample_set = call.dataset.sample_set
        with group.agreed(f"loading {call.model_name}"):
            model = _built(call, host) if isinstance(model, str) else model
            adapter = model.adapter if isinstance(model, CheckpointModel) else adapter_for(model)
        result = measure(
            adapter,
            sample_set,
            call.dataset.options.config,
            checkpoint=checkpoint_name(model) or call.model_name,
            host=HOST,
            group=group,
        )
        answer = prediction_of(result, settings_fingerprint(call.model_name))
        with group.agreed("saving the result"):
            if group.rank == 0:
                saved_results.append(result.save(call.path(RESULT_SUFFIX)))
    # VLMEvalKit deals rows out by rank, so the only one is the first process's.
    pd.to_pickle({index: answer} if group.rank == 0 else {}, call.out_file)
    return model


def _earlier_answer(call: Inference) -> str | None:
    earlier = call.path("_PREV.pkl")
    try:
        known = pd.read_pickle(earlier) if earlier.is_file() else {}
        answer = known.get(call.dataset.index)
    except Exception as error:  # what a damaged pickle raises is no closed list
        raise MirError(f"{earlier} cannot be read ({type(error).__name__}: {error}). Delete it.") from error
    try:
        told = None if answer is None else json_document(str(answer))
        outdated = is_outdated(told) or is_of_other_settings(told, call.model_name)
    except ValueError:  # nothing of ours, which the evaluation will say
        outdated = False
    return None if answer is None or outdated else str(answer)


def _built(call: Inference, host: ModuleType) -> Any:
    """The model, built as ``infer_data`` builds it: out of sight of WORLD_SIZE, or transformers would split it."""
    options = {"use_vllm": call.use_vllm} if any(name in call.model_name for name in _VLLM_NAMES) else {}
    world_size = os.environ.pop("WORLD_SIZE", None)
    try:
        return MODELS_BUILT_IN_INFERENCE.found_in(host)[call.model_name](**options)
    finally:
        if world_size is not None:
            os.environ["WORLD_SIZE"] = world_size
