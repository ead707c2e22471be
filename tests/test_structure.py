"""What an import costs, which private names are used, and that documentation names what is there."""

from __future__ import annotations

import ast
import os
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
        (
            "import mir_plugin.cli",
            {"torch", "transformers", "lmms_eval", "pandas", "openpyxl", "xlsxwriter", "matplotlib"},
        ),
        ("import mir_plugin.manifest; mir_plugin.manifest.manifests()", {"torch", "transformers"}),
        ("import mir_plugin.model_adapters", {"torch", "transformers"}),
        ("import mir_plugin.results", {"torch", "numpy"}),
        ("import mir_plugin.measurement.checkpoint_names", {"torch", "numpy"}),
    ],
)
def test_an_import_stays_cheap(statement: str, absent: set[str]) -> None:
    assert not loaded_by(statement) & absent


def test_the_import_cost_test_can_fail() -> None:
    assert "torch" in loaded_by("import mir_plugin.metric.frechet")


def test_no_top_level_package_but_ours_is_installed() -> None:
    installed = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name in ("model_adapters", "tasks", "reports"):
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=sys.prefix, env=installed, check=False)
        assert "ModuleNotFoundError" in done.stderr, f"a top-level {name} is importable"


def test_every_adapter_is_in_the_readme_table() -> None:
    from mir_plugin.model_adapters import ADAPTERS

    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| family \| checkpoints \|\n(.*?)\n\n", readme, flags=re.DOTALL)
    assert table is not None
    assert set(re.findall(r"^\| `([a-z0-9.-]+)` \|", table.group(1), flags=re.MULTILINE)) == {
        spec.name for spec in ADAPTERS
    }


# Ruff sees private attributes and imports (SLF001, PLC2701); names in strings, as getattr takes them, are found here.
PRIVATE_NAMES = {
    "model_adapters/huggingface/streaming.py": {"_hf_hook"},  # accelerate: where offloaded weights lie
    "model_adapters/introspection/decoder.py": {"_orig_mod"},  # torch.compile: the module inside
    "tasks/training/live.py": {"_original_forward"},  # accelerate: what its autocast wraps
}


def test_private_attributes_that_are_named_in_strings_are_listed() -> None:
    found: dict[str, set[str]] = {}
    for _, _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _attribute_names(node):
                if re.fullmatch(r"_[a-z]\w*", name):
                    found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(name)
    assert found == PRIVATE_NAMES


def _attribute_names(node: ast.AST) -> list[str]:
    """Literal names that getattr and its like, or a subscript of ``vars(…)``, are given."""
    named: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        named = node.args[1:2] if node.func.id in {"getattr", "hasattr", "setattr", "delattr"} else []
    elif isinstance(node, ast.Subscript):
        named = [node.slice]
    return [one.value for one in named if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def test_no_module_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils", "util", "misc", "common", "manager", "helpers"}
    assert not {name for _, name, _ in modules() if name.rsplit(".", 1)[-1] in drawers}
