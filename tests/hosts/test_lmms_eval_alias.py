import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from mir_plugin.errors import MirError
from mir_plugin.tasks.lmms_eval import alias as lmms_eval_alias
from mir_plugin.tasks.lmms_eval.alias import tasks_without_result

pytestmark = pytest.mark.slow


def results(**tasks: dict[str, Any]) -> dict[str, Any]:
    return {"configs": dict.fromkeys(tasks), "results": tasks}


def test_a_task_counts_as_done_when_one_metric_has_a_value() -> None:
    done = {"alias": "t", "acc,none": 0, "acc_stderr,none": "N/A", "submission,none": None}
    assert tasks_without_result(results(t=done)) == []


@pytest.mark.parametrize(
    "entries",
    [{}, {"alias": "t"}, {"mir,none": None, "mir_stderr,none": 0.1}, {"acc,none": []}, {"acc,none": "N/A"}],
)
def test_a_task_without_any_value_is_named(entries: dict[str, Any]) -> None:
    assert tasks_without_result(results(t=entries, fine={"acc,none": 0.5})) == ["t"]


def test_a_task_that_only_writes_a_submission_is_done() -> None:
    assert tasks_without_result(results(t={"submission,none": None})) == []


class Host(SimpleNamespace):
    """Stands for lmms_eval.__main__: runs one evaluation and swallows what it raises, as the real one does."""

    def run(self, tasks: str | None = "t") -> None:
        try:
            self.cli_evaluate_single(Namespace(tasks=tasks))
        except Exception:
            print("swallowed")


def exit_code_of(monkeypatch: pytest.MonkeyPatch, evaluate: Any, tasks: str | None = "t") -> object:
    host = Host(cli_evaluate_single=evaluate)
    monkeypatch.setitem(sys.modules, "lmms_eval.__main__", host)  # type: ignore[arg-type]
    monkeypatch.setattr("lmms_eval.cli.dispatch.main", lambda: host.run(tasks))
    try:
        lmms_eval_alias.main()
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_success_exits_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code_of(monkeypatch, lambda args: (results(t={"acc,none": 1.0}), None)) == 0


def test_a_swallowed_exception_and_an_empty_task_are_told_in_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(args: Any) -> Any:
        raise ValueError("no such dataset")

    assert exit_code_of(monkeypatch, fails) == "lmms_eval: ValueError: no such dataset"
    assert exit_code_of(monkeypatch, lambda args: (results(t={}), None)) == "lmms_eval: task t has no result."


def test_a_users_mistake_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(args: Any) -> Any:
        raise MirError("no checkpoint folder at x.")

    assert exit_code_of(monkeypatch, fails) == "lmms_eval: no checkpoint folder at x."
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code_of(monkeypatch, fails) == "lmms_eval: no checkpoint folder at x."
    assert capsys.readouterr().out == "swallowed\n"


def test_naming_no_task_is_an_error_where_lmms_eval_exits_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no task named" in str(exit_code_of(monkeypatch, lambda args: (None, None), tasks=None))
