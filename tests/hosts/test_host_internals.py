"""Every row of ``tasks/host_internals.py`` against the sources of the installed hosts, read without importing them."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mir_plugin.errors import MirError
from mir_plugin.tasks.host_internals import INTERNALS, Internal
from mir_plugin.tasks.vlmevalkit.command import run_script


def source_of(module: str) -> Path:
    """The file of a module; its host is not imported, which takes VLMEvalKit a minute."""
    package, *inner = module.split(".")
    if package in ("run", "vlmeval"):
        try:
            root = run_script().parent
        except MirError as error:
            pytest.skip(str(error))
    else:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parents[1]
    stem = root.joinpath(package, *inner)
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Name → what binds it, in a module or class: definitions, imports, assignments."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
    return names


def parameters(node: ast.stmt) -> set[str]:
    """Of a function, or of the constructor that a dataclass gets from its fields."""
    if isinstance(node, ast.ClassDef):
        return {name for name, field in bound(node.body).items() if isinstance(field, ast.AnnAssign)}
    assert isinstance(node, ast.FunctionDef)
    return {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


@pytest.mark.parametrize("row", INTERNALS, ids=lambda row: f"{row.module}.{row.name}")
def test_an_internal_is_as_the_table_says(row: Internal) -> None:
    path = source_of(row.module)
    body: list[ast.stmt] = parsed(path).body
    for part in filter(None, row.name.split(".")):
        names = bound(body)
        assert part in names, f"{path} has no {row.name}. Without it: {row.without_it}"
        node = names[part]
        body = node.body if isinstance(node, ast.ClassDef) else []
    if row.takes:
        assert set(row.takes) <= parameters(node), f"{row.name} takes other parameters. Without them: {row.without_it}"
    text = path.read_text(encoding="utf-8")
    assert [part for part in row.says if part not in text] == [], f"{path}. Without it: {row.without_it}"


def test_rows_are_complete_and_each_object_stands_once() -> None:
    for row in INTERNALS:
        assert row.host and row.module and row.why and row.without_it
    assert len({(row.module, row.name) for row in INTERNALS}) == len(INTERNALS)


def test_a_changed_host_is_named_by_what_it_lacks() -> None:
    row = Internal("host", "module", "Thing.call", why="", without_it="", takes=("given", "wanted"))
    module: Any = SimpleNamespace(Thing=SimpleNamespace(call=lambda given: given))
    with pytest.raises(TypeError, match=r"Thing\.call\(given\) has no wanted"):
        row.found_in(module)
    with pytest.raises(AttributeError, match="Thing"):
        row.found_in(SimpleNamespace())  # type: ignore[arg-type]
    module.Thing.call = lambda given, wanted: given
    assert row.found_in(module)(1, 2) == 1
