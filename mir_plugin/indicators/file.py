"""``indicators.json``: the indicators of a checkpoint, and what they were measured on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.strict_json import is_number, json_document
from mir_plugin.measurement.checkpoint_names import place_of
from mir_plugin.measurement.resume import require_same_checkpoint
from mir_plugin.results import MirResult

if TYPE_CHECKING:
    from mir_plugin.indicators.indicators import Indicators
    from mir_plugin.samples.sample_set import SampleSet
    from mir_plugin.types import ModelAdapter

INDICATORS_NAME = "indicators.json"

logger = logging.getLogger(__name__)


def save_indicators(
    path: Path,
    indicators: Indicators,
    adapter: ModelAdapter,
    checkpoint: Path,
    sample_set: SampleSet,
    questions: Mapping[str, Any],
) -> None:
    """Write ``indicators.json``: values, reasons, and of which weights, samples and questions they are."""
    document: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "place": place_of(str(checkpoint)),
        "checkpoint_fingerprint": adapter.facts["checkpoint_fingerprint"],
        "values": dict(indicators.values),
        "not_computed": dict(indicators.not_computed),
        "samples": {**sample_set.description, "fingerprint": sample_set.fingerprint},
        "questions": questions,
    }
    write_atomically(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def answered(recorded: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether an ``indicators.json`` holds what is asked for: its in-context accuracy is of these questions.

    A user's own questions are kept, because embedded ones would not improve on them.

    Args:
        recorded: its content; empty if there is none.
        about: the embedded questions that are requested, as ``about_questions`` describes them.
    """
    held = recorded.get("questions")
    if not recorded or not about["n_questions"]:
        return bool(recorded)
    if not isinstance(held, dict) or not held.get("n_questions"):
        return False
    return held.get("source") != about["source"] or held == about


def require_own(path: Path, checkpoint: Path) -> None:
    """Raise MirError if the file holds what was measured of another checkpoint."""
    try:
        document = json_document(path.read_text(encoding="utf-8"))
        filed = str(document["checkpoint"]), str(document.get("place", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or nothing of ours
        return
    require_same_checkpoint(path, filed, checkpoint, "remove it")


def recorded_indicators(folder: Path, result: MirResult) -> dict[str, float]:
    """The values of an ``indicators.json`` beside a result; none if it is of other samples, weights, or unreadable."""
    return dict(indicators_document(folder, result).get("values", {}))


def indicators_document(folder: Path, result: MirResult) -> dict[str, Any]:
    """The ``indicators.json`` beside a result; empty if it is of other samples, weights, or unreadable."""
    try:
        document: dict[str, Any] = json_document((folder / INDICATORS_NAME).read_text(encoding="utf-8"))
        measured_on = {"samples": document["samples"]["fingerprint"], "checkpoint": document["checkpoint_fingerprint"]}
        if not all(map(is_number, document["values"].values())):
            raise ValueError("a value is not a number")
        return document if measured_on.items() <= result.fingerprints.items() else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is not used: it cannot be read (%r)", folder / INDICATORS_NAME, error)
        return {}
