"""Who may import whom, what an import costs, and that documentation names what is there."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "mir_plugin": ROOT / "mir_plugin",
    "mir_plugin.model_adapters": ROOT / "model_adapters",
    "mir_plugin.tasks": ROOT / "tasks",
    "mir_plugin.reports": ROOT / "reports",
}


def modules() -> list[tuple[str, str, Path]]:
    """(part, module name, file) of every module of the project."""
    found = []
    for part, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            name = ".".join([part, *(p for p in inner if p != "__init__")])
            found.append((part, name, path))
    return found


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mir_plugin.cli", {"torch", "transformers", "lmms_eval", "pandas", "openpyxl", "matplotlib"}),
        ("import mir_plugin.manifest; mir_plugin.manifest.manifests()", {"torch", "transformers"}),
        ("import mir_plugin.model_adapters", {"torch", "transformers"}),
        ("import mir_plugin.results", {"torch", "numpy"}),
        ("import mir_plugin.selection.steps", {"torch", "numpy"}),
        ("import mir_plugin.reports.build", {"torch", "transformers", "lmms_eval", "vlmeval"}),
    ],
)
def test_an_import_stays_cheap(statement: str, absent: set[str]) -> None:
    assert not loaded_by(statement) & absent


def test_the_import_cost_test_can_fail() -> None:
    assert "torch" in loaded_by("import mir_plugin.metric.frechet")


def test_no_top_level_package_but_ours_is_installed() -> None:
    for name in ("model_adapters", "tasks", "reports"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=Path(sys.prefix), check=False
        )
        assert "ModuleNotFoundError" in done.stderr, f"a top-level {name} is importable"


def test_every_adapter_is_in_the_readme_table() -> None:
    from mir_plugin.model_adapters import ADAPTERS

    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| family \| checkpoints \|\n(.*?)\n\n", readme, flags=re.DOTALL)
    assert table is not None
    assert set(re.findall(r"^\| `([a-z0-9.-]+)` \|", table.group(1), flags=re.MULTILINE)) == {
        spec.name for spec in ADAPTERS
    }


@pytest.mark.parametrize(("name"), [m[1] for m in modules()])
def test_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


@pytest.mark.parametrize(("name"), [m[1] for m in modules()])
def test_docstrings_name_only_arguments_that_exist(name: str) -> None:
    module = importlib.import_module(name)
    for _, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != name or not function.__doc__:
            continue
        section = re.search(
            r"Args:\n(.*?)(?:\n\s*(?:Returns|Yields|Raises|Reference|Note):|\Z)", function.__doc__, re.S
        )
        if section is None:
            continue
        entries = re.findall(r"^ {4,12}(\*{0,2}\w+(?:, \w+)*):", section.group(1), flags=re.MULTILINE)
        documented = {one.lstrip("*") for entry in entries for one in entry.split(", ")}
        unknown = documented - set(inspect.signature(function).parameters)
        assert not unknown, f"{name}.{function.__name__} documents {sorted(unknown)}"


def test_no_module_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils", "util", "misc", "common", "manager", "helpers"}
    assert not {name for _, name, _ in modules() if name.rsplit(".", 1)[-1] in drawers}
