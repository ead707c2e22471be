"""Where weights go and as what: the ``device`` and ``dtype`` options, for every family."""

from __future__ import annotations

from typing import cast

import torch

from mir_plugin.errors import MirError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(name: str) -> torch.device:
    """The device of that name, tried out; "auto" is the GPU if there is one.

    Raises:
        MirError: for a name that is none, and for a device that holds no numbers: absent, full or without driver.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MirError(f"device is {name!r}; expected auto, cpu, cuda, cuda:1 or the like.") from error
    if device.type == "meta":
        raise MirError(f"device is {name!r}, where weights have no values. {_choices()}")
    try:
        torch.zeros(1, device=device, dtype=torch.float64)  # as statistics are computed; mps has no such numbers
    # What a backend that is not compiled in raises differs by backend.
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        sentences = str(error).strip().partition("\n")[0].split(". ")
        reason = ". ".join(sentences[:2]) or type(error).__name__  # behind them: advice for those who build torch
        raise MirError(f"device {name!r} cannot be used: {reason.rstrip('.')}. {_choices()}") from error
    return device


def chosen_dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; None for "auto", as the checkpoint was saved. Raises MirError for a name that is none."""
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise MirError(f"dtype is {name!r}; expected one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name, as ``dtype_name`` gives it."""
    return cast("torch.dtype", getattr(torch, name))


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as configs and options have it.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _choices() -> str:
    n_cuda = torch.cuda.device_count()
    present = ["cpu", *(f"cuda:{k}" for k in range(n_cuda))]
    return (
        f"CUDA devices that torch sees here: {n_cuda}. Choose {', '.join(present)} or auto, or check driver and "
        "CUDA_VISIBLE_DEVICES."
    )
