"""What LoRA pairs do to a model: merged into the base weights when they are read, or kept beside them.

W' = W + s · B A, with s = alpha / r (alpha / √r for rank-stabilised LoRA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.lora import LoraPair
from mir_plugin.model_adapters.weights.stored import Weight


@dataclass(frozen=True)
class MergedWeight:
    """A base weight with its LoRA pair added when it is read; computed in float32, kept in the base's dtype."""

    base: Weight
    lora: LoraPair

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base weight."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base weight."""
        return self.base.dtype

    @property
    def origin(self) -> str:
        """Keys and files, for error messages."""
        return f"{self.lora.up.origin}, merged into {self.base.origin}"

    def read(self) -> Tensor:
        """W + s · B A."""
        update = self.lora.up.read().float() @ self.lora.down.read().float()
        return (self.base.read().float() + self.lora.scale * update).to(self.base.dtype)


class LoraLinear(nn.Module):
    """A linear layer with its LoRA pair beside it: x Wᵀ + b + s · (x Aᵀ) Bᵀ."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the layer for inputs (..., inputs)."""
        return cast("Tensor", self.base(inputs) + self.scale * self.up(self.down(inputs)))


def merge(base: Mapping[str, Weight], pairs: Mapping[str, LoraPair]) -> dict[str, Weight]:
    """The mapping with every adapted module's weight merged on reading; ``pairs`` by parameter owner.

    Raises:
        MirError: if a pair has no base weight, or does not fit it (LoRA of another base).
    """
    merged = dict(base)
    for module, pair in pairs.items():
        merged[f"{module}.weight"] = MergedWeight(_base_weight(base, module, pair), pair)
    return merged


def keep_beside(base: Mapping[str, Weight], pairs: Mapping[str, LoraPair], model: nn.Module) -> dict[str, Weight]:
    """Put a ``LoraLinear`` in place of every adapted linear layer of an empty model; returns its parameters' weights.

    Raises:
        MirError: as ``merge``.
    """
    weights = dict(base)
    for module, pair in pairs.items():
        _base_weight(base, module, pair)
        owner_name, _, attribute = module.rpartition(".")
        owner = model.get_submodule(owner_name)
        with torch.device("meta"):
            layer = LoraLinear(cast("nn.Linear", getattr(owner, attribute)), pair.down.shape[0], pair.scale)
        setattr(owner, attribute, layer.eval().requires_grad_(False))
        for name in [name for name in base if name.rpartition(".")[0] == module]:
            weights[f"{module}.base.{name.rpartition('.')[2]}"] = weights.pop(name)
        weights |= {f"{module}.down.weight": pair.down, f"{module}.up.weight": pair.up}
    return weights


def _base_weight(base: Mapping[str, Weight], module: str, pair: LoraPair) -> Weight:
    weight = base.get(f"{module}.weight")
    if weight is None:
        raise MirError(
            f"{pair.up.origin} adapts {module!r}, which the base LLM does not have. "
            f"The LoRA belongs to another base; name that one with --base-llm."
        )
    if weight.shape != (pair.up.shape[0], pair.down.shape[1]):
        raise MirError(
            f"{pair.up.origin} makes an update of shape {[pair.up.shape[0], pair.down.shape[1]]}, but {weight.origin} "
            f"has {list(weight.shape)}. The LoRA belongs to another base; name that one with --base-llm."
        )
    return weight
