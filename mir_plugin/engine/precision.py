"""float32 arithmetic as the numbers of a measurement want it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 for the length of the block: it keeps ten bits of a float32 number.

    On NVIDIA GPUs cuDNN's convolutions (a vision tower's first layer, ConvNeXt) use it by default, and training
    programs switch it on for matrix products. Half precision is not concerned.
    """
    owners: tuple[Any, ...]
    full: str | bool
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9; mixed with the older flags, reading them raises
        owners, name, full = (torch.backends.cudnn.conv, torch.backends.cuda.matmul), "fp32_precision", "ieee"
    else:
        owners, name, full = (torch.backends.cudnn, torch.backends.cuda.matmul), "allow_tf32", False
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, full)
    try:
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)
