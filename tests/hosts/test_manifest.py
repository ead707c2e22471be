import logging
import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from mir_plugin import manifest

from tolerances import HANGS

pytestmark = pytest.mark.slow


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=HANGS)


def test_lmms_eval_lists_our_models_without_importing_torch_or_transformers() -> None:
    done = run_python("""
        import sys
        import lmms_eval.models as models
        names = models.list_available_models(include_aliases=True)
        print(sorted(name for name in names if name.startswith("mir_")))
        print({"torch", "transformers"} & set(sys.modules))
    """)
    assert done.stdout.splitlines() == ["['mir_hf', 'mir_llava', 'mir_mini_gemini', 'mir_sharegpt4v']", "set()"]
    assert done.stderr == ""


def test_the_manifest_survives_an_lmms_eval_that_lost_its_registry() -> None:
    done = run_python("""
        import sys
        sys.modules["lmms_eval.models.registry_v2"] = None
        sys.modules["lmms_eval.models"] = type(sys)("lmms_eval.models")
        from mir_plugin.manifest import manifests
        print(manifests())
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert done.stderr.count("\n") == 1
    assert "mir-plugin cannot register its models" in done.stderr


def test_a_changed_task_manager_costs_one_warning_that_names_the_include_path(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = ModuleType("lmms_eval.tasks")
    changed.TaskManager = type("TaskManager", (), {"initialize_tasks": lambda self, folders: {}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", changed)
    with caplog.at_level(logging.WARNING, logger="mir_plugin"):
        manifest.after_import("lmms_eval.tasks", lambda module: manifest._extend(module, manifest.EXTENSIONS[0]))
    [record] = caplog.records
    assert "has no include_path" in record.getMessage()
    folder = record.getMessage().partition("`--include_path ")[2].partition("`")[0]
    assert (manifest.Path(folder) / "mir.yaml").is_file()


def test_a_function_is_called_right_after_the_first_import(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (manifest.Path(str(tmp_path)) / "imported_late.py").write_text("value = 1\n")
    seen: list[int] = []
    finders = list(sys.meta_path)
    manifest.after_import("imported_late", lambda module: seen.append(module.value))
    assert seen == []
    import imported_late  # type: ignore[import-not-found]

    assert seen == [1]
    assert sys.meta_path == finders
    manifest.after_import("imported_late", lambda module: seen.append(module.value + 1))
    assert seen == [1, 2]
    assert imported_late.value == 1
    del sys.modules["imported_late"]
