"""Everything this plugin changes in lmms-eval, in one place. Imports neither lmms-eval nor torch."""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mir_plugin.tasks.host_internals import EVALUATE, MODEL_BASE, MODEL_CREATION, TASK_INDEX

log = logging.getLogger("mir_plugin")
TASKS_DIR = Path(__file__).parents[1] / "data" / "lmms_eval"


def index_our_tasks(tasks: ModuleType) -> None:
    """Let every ``TaskManager`` find our task files; tasks of lmms-eval and of the user's folders win over ours."""
    original = TASK_INDEX.found_in(tasks)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def initialize_tasks(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments.get("include_path") or []
        call.arguments["include_path"] = [*([given] if isinstance(given, str) else given), str(TASKS_DIR)]
        return original(*call.args, **call.kwargs)

    tasks.TaskManager.initialize_tasks = initialize_tasks


def let_every_model_answer_mir(model: ModuleType) -> None:
    """Give ``lmms`` a default ``mir`` method, so that built-in models that hold a Hugging Face module are measured."""

    def mir(self: Any, requests: list[Any]) -> list[str]:
        """Measure MIR of the model this object holds; see ``mir_plugin.tasks.lmms_eval.measurement``."""
        from mir_plugin.tasks.lmms_eval.measurement import answer_with_built_in_model

        return answer_with_built_in_model(self, requests)

    base = MODEL_BASE.found_in(model)
    if not hasattr(base, "mir"):
        base.mir = mir


def remember_created_models(model: ModuleType) -> None:
    """Let every model that lmms-eval creates by name be the one whose options the next task takes."""
    original = MODEL_CREATION.found_in(model).__func__

    @functools.wraps(original)
    def create_from_arg_string(cls: Any, *args: Any, **kwargs: Any) -> Any:
        created = original(cls, *args, **kwargs)
        remember(created)
        return created

    model.lmms.create_from_arg_string = classmethod(create_from_arg_string)


# A weak reference, so that the options of a model that is gone cannot choose the samples of the next one.
_latest: weakref.ref[Any] | None = None


def remember(model: object) -> None:
    """Make this model the one whose options the next task takes; lmms-eval builds tasks without naming the model."""
    global _latest
    _latest = weakref.ref(model)


def options_of_latest_model() -> tuple[Mapping[str, Any], object | None]:
    """The ``mir_…`` arguments of the latest model that is still alive, by their names in ``MirOptions``; the model."""
    model = _latest() if _latest else None
    return getattr(model, "mir_options", {}), model


def run_first(evaluator: Any, is_ours: Callable[[object], bool]) -> None:
    """Let the evaluator run our tasks before all others, and say what is saved when one of these fails.

    Any error discards the results of every task, so a model or sample set that cannot be measured has to show before
    minutes or hours of benchmarking, not after.
    """
    try:
        original = EVALUATE.found_in(evaluator)
    except (AttributeError, TypeError) as error:  # MIR itself does not need it
        log.warning("mir-plugin does not fit this lmms-eval (%s): %s.", error, EVALUATE.without_it)
        return

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        from mir_plugin.tasks.lmms_eval.saved import telling_what_is_saved

        # The first task turns a fractional --limit into the count that all others get: then order has a meaning.
        if "task_dict" in kwargs and not 0 < (kwargs.get("limit") or 0) < 1:
            kwargs["task_dict"] = _ours_first(kwargs["task_dict"], is_ours)
        with telling_what_is_saved():
            return original(*args, **kwargs)

    evaluator.evaluate = evaluate


def _ours_first(task_dict: dict[Any, Any], is_ours: Callable[[object], bool]) -> dict[Any, Any]:
    def holds_ours(value: object) -> bool:
        return any(map(holds_ours, value.values())) if isinstance(value, dict) else is_ours(value)

    ordered = sorted(task_dict.items(), key=lambda item: not holds_ours(item[1]))
    return {name: _ours_first(task, is_ours) if isinstance(task, dict) else task for name, task in ordered}
