"""Whether numbers of 16 bits are what their file says: float16 read as bfloat16, or the reverse, is finite noise.

Weights of a trained matrix spread around zero like a bell: between 2 and 40 of 100 are smaller than a tenth of their
root mean square. Read in the other format, a factor of two in size becomes one of 2^(1/8), so that none is that small,
or the reverse, so that few large ones leave all others behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mir_plugin.errors import MirError

_OTHER = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}
_N_MATRICES, _N_NUMBERS = 8, 16_384
_FEWEST_NUMBERS, _FEWEST_DIFFERENT = 1024, 200  # of fewer, as of quantised weights, the spread says nothing
_BELL = (0.02, 0.4)
_NONE_SMALL, _NEARLY_ALL_SMALL = 0.002, 0.8


class _Stored(Protocol):
    @property
    def key(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor: ...


def require_stated_format(path: Path, weights: Iterable[_Stored]) -> None:
    """Raise MirError if all of the first matrices of a file say that it was labelled with the wrong format.

    Only their first numbers are read.
    """
    matrices = (one for one in weights if one.dtype in _OTHER and len(one.shape) == 2 and one.key.endswith(".weight"))
    enough = (one for one in matrices if one.shape[0] * one.shape[1] >= _FEWEST_NUMBERS)
    looked_at = list(islice(enough, _N_MATRICES))
    if looked_at and all(_is_mislabelled(one.read()) for one in looked_at):
        stated, other = (
            str(dtype).removeprefix("torch.") for dtype in (looked_at[0].dtype, _OTHER[looked_at[0].dtype])
        )
        raise MirError(
            f"{path} says that its numbers are {stated}, but they spread as weights do only when read as {other}. It "
            "was labelled wrongly when it was converted: convert the original again."
        )


def _is_mislabelled(matrix: Tensor) -> bool:
    stored = matrix.flatten()[:_N_NUMBERS]
    if len(stored.unique()) < _FEWEST_DIFFERENT:
        return False
    as_stated, as_other = _share_of_small(stored), _share_of_small(stored.view(_OTHER[stored.dtype]))
    none_or_all = as_stated < _NONE_SMALL or as_stated > _NEARLY_ALL_SMALL
    return none_or_all and _BELL[0] < as_other < _BELL[1]


def _share_of_small(numbers: Tensor) -> float:
    """How many of those that are not zero are smaller than a tenth of their root mean square."""
    sizes = numbers[numbers != 0].double().abs()
    return float((sizes < 0.1 * sizes.square().mean().sqrt()).double().mean()) if len(sizes) else 0.0
