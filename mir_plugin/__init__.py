"""Modality Integration Rate (MIR, arXiv 2410.07167) of vision-language model checkpoints."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported on first use: the `mir` command and lmms-eval's discovery must not pay for torch and transformers.
_ON_FIRST_USE = {
    "MIRCallback": "mir_plugin.tasks.training.trainer",
    "measure_live": "mir_plugin.tasks.training.live",
    "metrics_of": "mir_plugin.selection.monitor",
    "saturated": "mir_plugin.selection.monitor",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_ON_FIRST_USE]
