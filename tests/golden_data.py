"""Where the recorded numbers of the original programs are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"


def require_golden(name: str) -> Path:
    """Folder of a recorded case such as "llava/llava_full"."""
    folder = GOLDEN / name
    assert folder.is_dir(), f"{folder} is missing: check it out again"
    return folder


def expected(case: Path) -> dict[str, Any]:
    """The ``expected.json`` of a case."""
    return json.loads((case / "expected.json").read_text(encoding="utf-8"))
