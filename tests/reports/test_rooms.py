"""The rooms of reports/ lie one above the other: none imports from a room that stands later in reading order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPORTS = Path(__file__).parents[2] / "reports"
PACKAGE = "mir_plugin.reports."
# A room may import from itself and from rooms of a lower number.
LEVELS = {"read": 0, "board": 1, "view": 2, "workbook": 3, "page": 3, "figures": 3, "text": 3, "build": 4}


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    return {module.removeprefix(PACKAGE).split(".")[0] for module in modules if module.startswith(PACKAGE)}


@pytest.mark.parametrize("path", sorted(REPORTS.rglob("*.py")), ids=lambda path: str(path.relative_to(REPORTS)))
def test_imports_between_rooms_point_downwards(path):
    room = path.relative_to(REPORTS).with_suffix("").parts[0]
    if room == "__init__":
        assert not imported_rooms(path)
        return
    upwards = {other for other in imported_rooms(path) if other != room and LEVELS[other] >= LEVELS[room]}
    assert not upwards
