"""What VLMEvalKit builds a model with: class and arguments, by which its answers are known again.

VLMEvalKit knows answers by the model's name alone. The same name with another dtype, or other bounds on image sizes, is
another model.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mir_plugin.files.fingerprint import fingerprint
from mir_plugin.files.strict_json import json_document
from mir_plugin.tasks.host_internals import KNOWN_MODELS

_WITHOUT_EFFECT = frozenset({"retry", "verbose", "stream"})  # of run.py's own flags, which it adds to every model


def settings_fingerprint(model_name: str) -> str | None:
    """Hash of a model's class and arguments, from ``--config`` and VLMEvalKit's table; None if it is in neither."""
    stated, known = _in_config_file(model_name), _in_table(model_name)
    return None if stated is None and known is None else fingerprint([stated, known])


def _in_config_file(model_name: str) -> Any:
    arguments = sys.argv
    if "--config" not in arguments[:-1]:
        return None
    try:
        config = json_document(Path(arguments[arguments.index("--config") + 1]).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # which VLMEvalKit itself will say
        return None
    models = config.get("model") if isinstance(config, dict) else None
    return models.get(model_name) if isinstance(models, dict) else None


def _in_table(model_name: str) -> Any:
    """Class and arguments as VLMEvalKit's table has them, without those that change no answer."""
    host = sys.modules.get(KNOWN_MODELS.module)
    table: Mapping[str, Any] = KNOWN_MODELS.found_in(host) if host else {}
    built = table.get(model_name)
    if not isinstance(built, functools.partial):
        return None if built is None else getattr(built, "__qualname__", repr(built))
    options = {name: repr(value) for name, value in built.keywords.items() if name not in _WITHOUT_EFFECT}
    return [built.func.__module__, built.func.__qualname__, [repr(value) for value in built.args], options]
