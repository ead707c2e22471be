"""How the `mir_…` arguments of a model reach the task, which lmms-eval builds next without telling it of the model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol


class HasMirOptions(Protocol):
    """A model that was given options of the measurement among its arguments."""

    mir_options: Mapping[str, Any]


# A weak reference, so that the options of a model that is gone cannot choose the samples of the next one.
_latest: weakref.ref[HasMirOptions] | None = None


def remember(model: HasMirOptions) -> None:
    """Make this model the one whose options the next task takes."""
    global _latest
    _latest = weakref.ref(model)


def options_of_latest_model() -> tuple[Mapping[str, Any], HasMirOptions | None]:
    """Options of the latest model that is still alive, and that model."""
    model = _latest() if _latest else None
    return (model.mir_options, model) if model else ({}, None)
