"""Signatures and docstrings of the public names, as the source has them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from importlib import import_module
from typing import Any

from reference_contents import PYTHON


def python() -> str:
    """Signatures and docstrings of what other programs may call."""
    parts = [
        "# Python\n",
        "All of these are imported from `mir_plugin`, on first use: `import mir_plugin` itself loads no torch. Names\n"
        "that are not listed here may change without notice. Errors that a user can fix are raised as\n"
        "`mir_plugin.MirError`, with the message that `mir` prints; any other exception is a bug.\n",
    ]
    for heading, places in PYTHON.items():
        parts.append(f"## {heading}\n")
        parts += [_documented(place) for place in places]
    return "\n".join(parts)


def _documented(place: str) -> str:
    module, _, name = place.partition(":")
    member = getattr(import_module(module), name)
    arguments, returned = _arguments(member)
    one_line = f"{name}({', '.join(arguments)}){returned}"
    several = f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){returned}"
    shown = one_line if len(one_line) < 100 else several
    text = inspect.cleandoc(member.__doc__ or "")
    return f"### {name}\n\n```python\nfrom mir_plugin import {name}\n\n{shown}\n```\n\n```text\n{text}\n```\n"


def _arguments(member: Any) -> tuple[list[str], str]:
    """Each argument as the source has it, and the annotation of what is returned."""
    if dataclasses.is_dataclass(member):
        return _class_body(member), ""
    function = member.__init__ if inspect.isclass(member) else member
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    given = definition.args
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    plain = [_argument_text(*one) for one in zip(given.args, defaults, strict=True) if one[0].arg != "self"]
    keywords = [_argument_text(*one) for one in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    returned = f" -> {ast.unparse(definition.returns)}" if definition.returns and function is member else ""
    return [*plain, *(["*"] if keywords else []), *keywords], returned


def _class_body(cls: Any) -> list[str]:
    """The fields of a dataclass, each as its source has it; a default that is made for each object as ``...``."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    return [f"{ast.unparse(one.target)}: {ast.unparse(one.annotation)}{_default_text(one.value)}" for one in fields]


def _default_text(value: ast.expr | None) -> str:
    if value is None:
        return ""
    return " = ..." if isinstance(value, ast.Call) else f" = {ast.unparse(value)}"


def _argument_text(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + _default_text(default)
