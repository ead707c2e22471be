"""The documentation's commands, run as shown; the files they write, against their schemas; and the built site."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from documented import DOCS, REPOSITORY, Workspace, blocks, pages

pytestmark = pytest.mark.slow

SCHEMAS = {"mir.json": "mir", "sweep.json": "sweep", "indicators.json": "indicators", "verdict.json": "selection"}


def runs(page: Path) -> bool:
    """Whether anything of a page is run here; the README's demo and the like are marked as needing more."""
    return any(one.needs is None and one.language in ("bash", "console", "python") for one in blocks(page))


@pytest.fixture(scope="session")
def validators() -> dict[str, Any]:
    """File name → validator with no room for a key that its schema does not describe."""
    sys.path.insert(0, str(DOCS))
    try:
        from result_schemas import closed
    finally:
        sys.path.remove(str(DOCS))
    folder = DOCS / "reference" / "schemas"
    return {
        name: jsonschema.Draft202012Validator(closed(json.loads((folder / f"{schema}.schema.json").read_text("utf-8"))))
        for name, schema in {**SCHEMAS, "robustness.json": "robustness"}.items()
    }


@pytest.mark.parametrize(
    "page", [pytest.param(one, id=str(one.relative_to(REPOSITORY))) for one in pages() if runs(one)]
)
def test_the_commands_of_a_page_do_what_it_shows(
    page: Path, tmp_path: Path, validators: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, names = Workspace(tmp_path), dict[str, Any]()
    monkeypatch.chdir(tmp_path)
    beside = {*REPOSITORY.iterdir(), REPOSITORY / ".pytest_cache"}
    waiting = [block for block in blocks(page) if block.title]
    for block in waiting:
        (tmp_path / str(block.title)).write_text(block.text, encoding="utf-8")
    for block in blocks(page):
        if block.needs or block.title:
            continue
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        if block.language == "bash":
            outcome = workspace.script(block.text)
            assert outcome.code == 0, f"{block}: {outcome.err}"
        if block.language != "console":
            continue
        commands = block.commands()
        for command, following in zip(commands, [*commands[1:], None], strict=True):
            outcome = workspace.run(command.text)
            expects_failure = following is not None and following.text == "echo $?"
            assert outcome.code == 0 or expects_failure, f"{block}: {command.text}\n{outcome.err}{outcome.out}"
            if command.shown:
                assert outcome.shows(command.shown), f"{block}: {command.text}\n{outcome.difference(command.shown)}"
    assert set(REPOSITORY.iterdir()) <= beside, f"{page.name} writes into the repository"
    for path in tmp_path.rglob("*.json"):
        if path.name in validators and path.stat().st_size:
            validators[path.name].validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.host
def test_the_demo_prints_what_the_quick_start_shows(tmp_path: Path) -> None:
    (block,) = (one for one in blocks(DOCS / "quick-start.md") if "$ mir demo\n…" in one.text)
    _, shown = block.text.split("$ mir demo\n")
    outcome = Workspace(tmp_path).script("mir demo --out demo-out")
    assert outcome.code == 0, outcome.err
    assert outcome.shows(tuple(shown.splitlines())), outcome.difference(tuple(shown.splitlines()))


def test_a_result_with_a_key_that_no_schema_describes_is_found(validators: dict[str, Any]) -> None:
    for validator in validators.values():
        messages = [error.message for error in validator.iter_errors({"surprise": 1})]
        assert any("'surprise' was unexpected" in message for message in messages)


@pytest.mark.parametrize(
    ("shown", "came_out", "agrees"),
    [
        ("MIR  2.0375  exact", "MIR            2.03751  exact  ", True),
        ("MIR 2.0375", "MIR 2.0374", True),
        ("MIR 2.0375", "MIR 2.0365", False),
        ("6 samples", "7 samples", False),
        ("first\n…\nlast", "first\na\nb\nlast", True),
        ("first\n…\nlast", "first\na\nb", False),
        ("depth, … s", "depth, 0.4 s", True),
    ],
)
def test_shown_output_is_held_to_its_digits(shown: str, came_out: str, agrees: bool) -> None:
    from documented import Outcome

    assert Outcome(0, came_out, "").shows(tuple(shown.splitlines())) is agrees


def test_python_blocks_compile_and_import_names_that_exist() -> None:
    missing = []
    for block in (one for page in pages() for one in blocks(page)):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mir_plugin"):
                module = importlib.import_module(str(node.module))
                missing += [f"{block}: {one.name}" for one in node.names if not hasattr(module, one.name)]
    assert not missing


def test_the_reference_is_what_the_code_of_its_tree_says_whatever_is_installed(tmp_path: Path) -> None:
    (tmp_path / "mir_plugin.py").write_text("raise ImportError('another tree')\n", encoding="utf-8")
    command = [sys.executable, str(DOCS / "generate_reference.py"), "--check"]
    others = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=others)
    assert done.returncode == 0, f"{done.stderr}\nRun: python docs/generate_reference.py"


class _Loads(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.found.append(given.get("href") or "")


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(tmp_path.rglob("*.html"))
    assert {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")} <= {
        page.relative_to(tmp_path) for page in built
    }
    for page in built:
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in loads.found if re.match(r"(https?:)?//", address)], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
