"""Functions that ``drawings.yaml`` names. lmms-eval imports this file from the folder of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The drawing."""
    return [Image.open(Path(doc["folder"], doc["image"])).convert("RGB")]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1.0 where the response is the answer, but for case and a full stop; once over all, once for its kind."""
    right = float(_plain(results[0]) == _plain(doc["answer"]))
    return {"exact_match": right, doc["kind"]: right}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
