"""Content hashes of a model in memory: what a host tool loaded, or a training has made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mir_plugin.files.fingerprint import remembered
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.quantization import holds_codes, plain_tensors
from mir_plugin.model_adapters.weights.stored import StoredTensor, unwrapped_key

CHUNK_BYTES = 16 << 20


def module_fingerprint(model: nn.Module, read: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter) -> str:
    """Hash of every parameter, buffer and scale: name without what wrappers add to it, dtype, shape and all its bytes.

    Args:
        read: gives the value of a named parameter that stands in the model by a placeholder.
    """
    from xxhash import xxh3_128

    digest = xxh3_128()
    for name, stored in (*model.named_parameters(), *model.named_buffers(), *_scales(model)):
        whole = read(name, stored) if isinstance(stored, nn.Parameter) else stored
        for part_name, value in plain_tensors(whole, name):
            digest.update(f"{unwrapped_key(part_name)}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            for part in _bytes_of(value):
                digest.update(part)
    return str(digest.hexdigest())[:16]


def _scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What modules with integer weights save besides parameters and buffers: what their codes stand for."""
    for name, module in model.named_modules():
        if holds_codes(module):
            own = dict(module.named_parameters(recurse=False))
            known = {*own, *(key for key, _ in module.named_buffers())}
            # Saving a 4-bit layer of bitsandbytes may rearrange its weights and round its scales.
            states = [state for one in own.values() if (state := getattr(one, "quant_state", None)) is not None]
            saved = states[0].as_dict(packed=True) if states else module.state_dict()
            yield from (
                (f"{name}.{key}", saved[key]) for key in sorted(saved.keys() - known) if isinstance(saved[key], Tensor)
            )


def holds_stored(model: nn.Module, weights: Iterable[StoredTensor]) -> bool:
    """Whether every parameter of a model holds the very numbers of one of the stored tensors.

    Names play no part, as loaders rename them. Numbers of another stored dtype are compared after conversion. False
    where that cannot be told: weights that were quantised while loading, or parameters made of several stored ones.

    Raises:
        MirError: if a file is damaged, or changes while it is read.
    """
    held = [value for parameter in model.parameters() for _, value in plain_tensors(parameter)]
    dtypes = {value.dtype for value in held}
    by_file: dict[Path, list[StoredTensor]] = {}
    for weight in weights:
        by_file.setdefault(weight.path, []).append(weight)
    stored = {one for path, own in by_file.items() for dtype in dtypes for one in _digests_in(path, own, dtype)}
    return all(_digest(value) in stored for value in held)


def _digests_in(path: Path, weights: Sequence[StoredTensor], dtype: torch.dtype) -> list[str]:
    """Of tensors in one file, as a model of this dtype holds them."""
    what = [dtype_name(dtype), *(weight.key for weight in weights)]
    return remembered(path, what, lambda: " ".join(_digest(weight.read().to(dtype)) for weight in weights)).split()


def _digest(value: Tensor) -> str:
    from xxhash import xxh3_128

    digest = xxh3_128(str(value.dtype).encode())
    for part in _bytes_of(value):
        digest.update(part)
    return str(digest.hexdigest())


def _bytes_of(value: Tensor) -> Iterator[memoryview]:
    value = value.detach().flatten()
    for part in value.split(max(1, CHUNK_BYTES // value.element_size())):
        yield part.contiguous().cpu().view(torch.uint8).numpy().data
