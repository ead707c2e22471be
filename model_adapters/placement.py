"""Where weights go and as what: the ``device`` and ``dtype`` options, for every family."""

from __future__ import annotations

import torch

from mir_plugin.errors import MirError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator if there is one. Raises MirError for a name that is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise MirError(f"device is {name!r}; expected auto, cpu, cuda, cuda:1 or the like.") from error


def chosen_dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; None for "auto", as the checkpoint was saved. Raises MirError for a name that is none."""
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise MirError(f"dtype is {name!r}; expected one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]
