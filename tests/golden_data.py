"""Where the recorded numbers of the original programs are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
PLACES = (REPOSITORY / "tests" / "golden", REPOSITORY.parent / "shared" / "golden")


def golden_case(name: str) -> Path | None:
    """Folder of a recorded case such as "llava/llava_full"; None where only the complete collection has it."""
    return next((place / name for place in PLACES if (place / name).is_dir()), None)


def require_golden(name: str) -> Path:
    """The same, skipping the test where the case is not at hand."""
    return golden_case(name) or pytest.skip(f"golden case {name} is not at hand")


def expected(case: Path) -> dict[str, Any]:
    """The ``expected.json`` of a case."""
    return json.loads((case / "expected.json").read_text(encoding="utf-8"))
