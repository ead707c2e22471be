"""Content hash of a model in memory: what a host tool loaded, or a training has made of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CHUNK_BYTES = 16 << 20


def module_fingerprint(model: nn.Module, read: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter) -> str:
    """Hash of every parameter: name, dtype, shape and all its bytes.

    Args:
        read: gives the value of a named parameter whose weights are not loaded.
    """
    from xxhash import xxh3_128

    digest = xxh3_128()
    for name, current in model.named_parameters():
        parameter = read(name, current).detach()
        digest.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
        for part in parameter.flatten().split(CHUNK_BYTES // parameter.element_size()):
            digest.update(part.contiguous().cpu().view(torch.uint8).numpy())
    return str(digest.hexdigest())[:16]
