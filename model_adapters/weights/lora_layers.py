"""What LoRA pairs do to a model: merged into the base weights when they are read, or kept beside them.

W' = W + s · B A, with s = alpha / r (alpha / √r for rank-stabilised LoRA). Methods that do more than that (DoRA, PiSSA,
OLoRA) are merged by PEFT itself, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.lora import LoraPair
from mir_plugin.model_adapters.weights.stored import Weight


@dataclass(frozen=True)
class MergedWeight:
    """A base weight with its LoRA pair added when it is read; computed in float32, kept in the base's dtype.

    Other methods than plain LoRA compute in the base's dtype, as PEFT did when training began.
    """

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
        """W + s · B A, or what the adapter's method makes of them."""
        if self.lora.method is not None:
            return _merged_by_peft(self.base.read(), self.lora)
        update = self.lora.up.read().float() @ self.lora.down.read().float()
        return (self.base.read().float() + self.lora.scale * update).to(self.base.dtype)


class _Holder(nn.Module):
    """A model of one linear layer, for PEFT."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight = nn.Parameter(weight.clone(), requires_grad=False)


def _merged_by_peft(weight: Tensor, pair: LoraPair) -> Tensor:
    """The weight after PEFT has begun as in training, loaded the stored factors, and merged them."""
    try:
        import peft
    except ImportError as error:
        raise MirError(
            f"{pair.up.path.parent} is a {pair.method} adapter, which PEFT merges, but peft is not installed: "
            "`pip install peft`."
        ) from error
    config = peft.LoraConfig(
        r=pair.down.shape[0],
        lora_alpha=pair.alpha,  # type: ignore[arg-type]  # PEFT itself saves fractions
        target_modules=["layer"],
        use_rslora=bool(pair.settings.get("use_rslora")),
        use_dora=bool(pair.settings.get("use_dora")),
        init_lora_weights=pair.settings.get("init_lora_weights", True),
    )
    model: Any = peft.get_peft_model(cast("Any", _Holder(weight)), config)
    stored = {"lora_A.weight": pair.down, "lora_B.weight": pair.up, **pair.more}
    state = {f"base_model.model.layer.{name}": tensor.read() for name, tensor in stored.items()}
    loaded: Any = peft.set_peft_model_state_dict(model, state)
    if loaded.unexpected_keys:
        raise MirError(f"PEFT does not take {', '.join(loaded.unexpected_keys)} of {pair.up.path}. Update peft.")
    merged: Tensor = model.merge_and_unload().layer.weight.detach()
    return merged.to(weight.dtype)


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
        if pair.method is not None:
            raise MirError(
                f"{pair.up.path.parent} is a {pair.method} adapter, which is merged or not measured. Leave out "
                "--no-merge-lora."
            )
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
