"""Everything this plugin changes in VLMEvalKit, in one place. Imports neither VLMEvalKit nor torch at the top.

No installed file is edited: lists and names of VLMEvalKit's modules are extended as soon as it has imported them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.manifest import after_import
from mir_plugin.tasks.host_internals import (
    DATA_SET_BASE,
    DATA_SET_CLASSES,
    DATA_SET_NAMES,
    INFERENCE,
    KNOWN_MODELS,
    LOADING,
    VLM_BASE,
)

DATA_SET = "MIR"
MODEL_CLASS = "MirModel"
DATA_SET_CLASS = "MIRDataset"
TRIED = "e8e78f05 (August 2026)"


def install(checkpoints: Mapping[str, Mapping[str, Any]], failed: Callable[[str, Exception], None]) -> None:
    """Arrange that VLMEvalKit, once it is imported, knows MIR and the named checkpoints.

    Args:
        checkpoints: name for ``--model`` → arguments of ``MirModel``.
        failed: told the model's name and the error of every measurement that failed.
    Raises:
        MirError: later, when a module is imported that has not what is needed here.
    """
    hooks: dict[str, Callable[[ModuleType], None]] = {
        DATA_SET_BASE.module: register_data_set,
        VLM_BASE.module: register_model,
        KNOWN_MODELS.module: functools.partial(name_checkpoints, checkpoints=checkpoints),
        INFERENCE.module: functools.partial(measure_when_ours, failed=failed),
        LOADING.module: _observe_loading,
    }
    for name, hook in hooks.items():
        after_import(name, functools.partial(_applied, hook))


def _applied(hook: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        hook(module)
    except (AttributeError, TypeError) as error:
        raise MirError(
            f"mir-plugin does not fit this VLMEvalKit ({module.__name__}: {error}). "
            f"Use its commit {TRIED}, or `mir run`."
        ) from error


def register_data_set(dataset: ModuleType) -> None:
    """Let ``vlmeval.dataset`` know MIR: by its name for ``--data``, by its class for configurations."""
    from mir_plugin.tasks.vlmevalkit.data_set import MirDataSet

    bases = (MirDataSet, DATA_SET_BASE.found_in(dataset))
    ours = type(DATA_SET_CLASS, bases, {"__doc__": MirDataSet.__doc__})
    DATA_SET_CLASSES.found_in(dataset).append(ours)
    DATA_SET_NAMES.found_in(dataset).extend(MirDataSet.supported_datasets())
    setattr(dataset, DATA_SET_CLASS, ours)


def register_model(vlm: ModuleType) -> None:
    """Let ``vlmeval.vlm`` know our checkpoint adapters, as the class ``MirModel`` of a ``--config`` file."""
    from mir_plugin.tasks.vlmevalkit.model import CheckpointModel

    base = VLM_BASE.found_in(vlm)
    setattr(vlm, MODEL_CLASS, type(MODEL_CLASS, (CheckpointModel, base), {"__doc__": CheckpointModel.__doc__}))


def name_checkpoints(config: ModuleType, checkpoints: Mapping[str, Mapping[str, Any]]) -> None:
    """Let ``--model`` find the checkpoints that were named on the command line.

    Raises:
        MirError: if VLMEvalKit has a model of that name already.
    """
    known = KNOWN_MODELS.found_in(config)
    for name, arguments in checkpoints.items():
        if name in known:
            raise MirError(f"--model {name}=…: VLMEvalKit has a model of that name. Choose another one.")
        known[name] = functools.partial(_model_class(), **arguments)


def measure_when_ours(inference: ModuleType, failed: Callable[[str, Exception], None]) -> None:
    """Measure where ``infer_data`` would ask; VLMEvalKit itself logs a failure and goes on, so it is also noted.

    Raises:
        TypeError: if this VLMEvalKit calls ``infer_data`` in another way.
    """
    original = INFERENCE.found_in(inference)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def infer_data(*args: Any, **kwargs: Any) -> Any:
        from mir_plugin.tasks.vlmevalkit.data_set import MirDataSet
        from mir_plugin.tasks.vlmevalkit.measurement import Inference, measured

        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        if not isinstance(call.arguments["dataset"], MirDataSet):
            return original(*args, **kwargs)
        try:
            return measured(Inference.of(call.arguments), inference)
        except Exception as error:
            failed(call.arguments["model_name"], error)
            raise

    setattr(inference, original.__name__, infer_data)


def _observe_loading(modeling_utils: ModuleType) -> None:
    from mir_plugin.model_adapters.in_memory.initial_weights import observe_loading

    observe_loading(modeling_utils)


def _model_class() -> type:
    import vlmeval.vlm

    return getattr(vlmeval.vlm, MODEL_CLASS)
