"""Arguments of a host tool's model that say how our adapters load its checkpoint: the names of ``LoadOptions``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mir_plugin.distributed import own_device
from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions

LOADING = tuple(f.name for f in dataclasses.fields(LoadOptions))
PATHS = ("base_llm", "vision_tower", "vision_tower_aux")
TRUTHS = ("merge_lora", "trust_remote_code")


def load_options(arguments: Mapping[str, Any]) -> LoadOptions:
    """Those of ``arguments`` that are named in ``LOADING``; under a launcher, on this process's own accelerator.

    Raises:
        MirError: for a ``device_memory`` that is no size, or a text that is neither true nor false.
    """
    given = {name: arguments[name] for name in LOADING if arguments.get(name) is not None}
    given |= {name: Path(str(given[name])) for name in PATHS if name in given}
    if "device_memory" in given:
        from mir_plugin.commands.options import bytes_of

        given["device_memory"] = bytes_of(str(given["device_memory"]))
    given |= {name: _truth(name, given[name]) for name in TRUTHS if name in given}
    return LoadOptions(**(given | {"device": own_device(str(given.get("device", "auto")))}))


def _truth(name: str, value: Any) -> bool:
    """Python takes "false" for true, and then code of the checkpoint would run."""
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise MirError(f"{name} is {value!r}; expected true or false.")
    return known[str(value).lower()]
