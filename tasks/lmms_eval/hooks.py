"""Everything this plugin changes in lmms-eval, in one place. Imports neither lmms-eval nor torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

TASKS_DIR = Path(__file__).parents[1] / "data" / "lmms_eval"


def index_our_tasks(tasks: ModuleType) -> None:
    """Let every ``TaskManager`` find our task files; tasks of lmms-eval and of the user's folders win over ours."""
    original = tasks.TaskManager.initialize_tasks
    signature = inspect.signature(original)
    if "include_path" not in signature.parameters:
        raise TypeError(f"TaskManager.initialize_tasks{signature} has no include_path")

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

    if not hasattr(model.lmms, "mir"):
        model.lmms.mir = mir


def run_first(evaluator: Any, is_ours: Callable[[object], bool]) -> None:
    """Let the evaluator run our tasks before all others.

    Any error discards the results of every task, so a model or sample set that cannot be measured has to show before
    minutes or hours of benchmarking, not after.
    """
    original = evaluator.evaluate

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        # The first task turns a fractional --limit into the count that all others get: then order has a meaning.
        if "task_dict" in kwargs and not 0 < (kwargs.get("limit") or 0) < 1:
            kwargs["task_dict"] = _ours_first(kwargs["task_dict"], is_ours)
        return original(*args, **kwargs)

    evaluator.evaluate = evaluate


def _ours_first(task_dict: dict[Any, Any], is_ours: Callable[[object], bool]) -> dict[Any, Any]:
    def holds_ours(value: object) -> bool:
        return any(map(holds_ours, value.values())) if isinstance(value, dict) else is_ours(value)

    ordered = sorted(task_dict.items(), key=lambda item: not holds_ours(item[1]))
    return {name: _ours_first(task, is_ours) if isinstance(task, dict) else task for name, task in ordered}
