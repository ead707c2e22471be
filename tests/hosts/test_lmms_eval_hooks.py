import gc
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from mir_plugin.tasks.lmms_eval import hooks

pytestmark = pytest.mark.slow


def fake_tasks_module() -> Any:
    class TaskManager:
        def initialize_tasks(self, include_path: Any = None, include_defaults: bool = True) -> Any:
            return include_path, include_defaults

    return SimpleNamespace(TaskManager=TaskManager)


def test_our_folder_comes_after_the_users_however_these_are_given() -> None:
    module = fake_tasks_module()
    hooks.index_our_tasks(module)
    manager, ours = module.TaskManager(), str(hooks.TASKS_DIR)
    assert manager.initialize_tasks() == ([ours], True)
    assert manager.initialize_tasks("mine", include_defaults=False) == (["mine", ours], False)
    assert manager.initialize_tasks(include_path=["a", "b"]) == (["a", "b", ours], True)


def test_a_mir_method_of_lmms_eval_itself_is_left_alone() -> None:
    theirs = type("lmms", (), {"mir": "theirs"})
    hooks.let_every_model_answer_mir(SimpleNamespace(lmms=theirs))  # type: ignore[arg-type]
    assert theirs.mir == "theirs"


def evaluated_order(task_dict: dict[str, Any], **kwargs: Any) -> list[str]:
    module = SimpleNamespace(evaluate=lambda lm, task_dict, limit=None: list(task_dict))
    hooks.run_first(module, lambda task: task == "ours")  # type: ignore[arg-type]
    order: list[str] = module.evaluate(lm=None, task_dict=task_dict, **kwargs)
    return order


def test_our_tasks_run_first_also_from_inside_a_group() -> None:
    assert evaluated_order({"pope": "x", "mir": "ours"}) == ["mir", "pope"]
    assert evaluated_order({"pope": "x", "group": {"a": "x", "mir": "ours"}}, limit=4) == ["group", "pope"]


def test_a_fractional_limit_keeps_the_order_because_the_first_task_defines_the_count() -> None:
    assert evaluated_order({"pope": "x", "mir": "ours"}, limit=0.5) == ["pope", "mir"]


def test_an_evaluator_that_changed_costs_the_order_only(caplog: pytest.LogCaptureFixture) -> None:
    module: Any = SimpleNamespace(evaluate=lambda lm, tasks: list(tasks))
    hooks.run_first(module, lambda task: task == "ours")
    assert module.evaluate(None, {"pope": "x", "mir": "ours"}) == ["pope", "mir"]
    [record] = caplog.records
    assert "has no limit, task_dict" in record.getMessage()


def test_the_latest_model_chooses_the_samples_also_one_without_options_of_its_own() -> None:
    class lmms:
        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            return cls()

    class Ours(lmms):
        mir_options: ClassVar[dict[str, str]] = {"samples": "embedded"}

    hooks.remember_created_models(SimpleNamespace(lmms=lmms))  # type: ignore[arg-type]
    first = Ours.create_from_arg_string("")
    assert hooks.options_of_latest_model() == ({"samples": "embedded"}, first)
    second = lmms.create_from_arg_string("")
    assert hooks.options_of_latest_model() == ({}, second)
    del second
    gc.collect()
    assert hooks.options_of_latest_model() == ({}, None)
