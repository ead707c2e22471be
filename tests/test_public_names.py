"""What ``mir_plugin`` exports: every documented name, on first use, visible to type checkers."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mir_plugin
from mir_plugin.errors import MirError

INIT = Path(mir_plugin.__file__)


def for_type_checkers() -> dict[str, str]:
    """Name → module of what stands under ``if TYPE_CHECKING``, each as ``import name as name``, which re-exports it."""
    tree = ast.parse(INIT.read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(one.asname == one.name for node in imports for one in node.names)
    return {one.name: str(node.module) for node in imports for one in node.names}


def test_type_checkers_see_the_exported_names() -> None:
    assert for_type_checkers() == mir_plugin._MODULE_OF


@pytest.mark.parametrize("name", mir_plugin._MODULE_OF)
def test_an_exported_name_is_that_of_its_module(name: str) -> None:
    assert getattr(mir_plugin, name) is getattr(importlib.import_module(mir_plugin._MODULE_OF[name]), name)
    assert name in dir(mir_plugin)


def test_no_exported_name_is_hidden_by_a_module() -> None:
    """Importing ``mir_plugin.x`` makes the module an attribute, before ``__getattr__`` is asked."""
    beside = {path.stem for path in INIT.parent.iterdir()}
    assert not beside & mir_plugin._MODULE_OF.keys()


def test_every_exported_name_is_documented_and_no_other() -> None:
    page = (INIT.parents[1] / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: mir_plugin\.(\w+)$", page, flags=re.MULTILINE))
    assert mir_plugin._MODULE_OF.keys() == documented | {"MirError"}  # explained at the top of that page


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="modality_integration"):
        mir_plugin.modality_integration  # noqa: B018
    assert mir_plugin.MirError is MirError


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys; import mir_plugin; print([name for name in sys.modules if name.startswith('mir_plugin.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
