"""Functions that ``drawings.yaml`` names. lmms-eval imports this file from the folder of the task."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The drawing."""
    return [Image.open(Path(doc["folder"], doc["image"])).convert("RGB")]


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool] | str]) -> dict[str, float]:
    """1.0 where the answer is the likeliest of the options; once over all, once for its kind.

    Args:
        results: of each option the loss in nats, summed over its tokens, and whether it would have been the response;
            lmms-eval 0.7.3 hands over the text of the pair.
    """
    pairs = [ast.literal_eval(result) if isinstance(result, str) else result for result in results]
    losses = [loss for loss, _ in pairs]
    right = float(doc["options"][losses.index(min(losses))] == doc["answer"])
    return {"acc": right, doc["kind"]: right}
