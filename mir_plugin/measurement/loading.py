"""How a checkpoint is to be loaded: from options of a command or arguments of a host tool's model, by one rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from mir_plugin.measurement.options import bytes_of, truth
from mir_plugin.model_adapters import LoadOptions

LOADING = tuple(field.name for field in dataclasses.fields(LoadOptions))
PATHS = ("base_llm", "vision_tower", "vision_tower_aux")
TRUTHS = ("merge_lora", "trust_remote_code")


def load_options(arguments: Mapping[str, Any]) -> LoadOptions:
    """Those of ``arguments`` that are named in ``LOADING``; under a launcher, on this process's own accelerator.

    Args:
        arguments: a command's own, as its ``locals()`` holds them, or a host tool's, where all may be texts.
    Raises:
        MirError: for a ``device_memory`` that is no size, or a text that is neither true nor false.
    """
    from mir_plugin.processes import own_device

    given = {name: arguments[name] for name in LOADING if arguments.get(name) is not None}
    given |= {name: value.value for name, value in given.items() if isinstance(value, Enum)}
    given |= {name: Path(str(given[name])) for name in PATHS if name in given}
    given |= {name: truth(given[name], name) for name in TRUTHS if name in given}
    if "device_memory" in given:
        given["device_memory"] = bytes_of(str(given["device_memory"]))
    return LoadOptions(**(given | {"device": own_device(str(given.get("device", "auto")))}))
