"""Finds the language model's decoder layers and final norm inside any transformers vision-language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.types import Decoder

# Parts of module paths that belong to another modality; a language model is never below one of them.
_OTHER_MODALITIES = (
    "vision",
    "visual",
    "image",
    "qformer",
    "audio",
    "video",
    "perceiver",
    "resampler",
    "connector",
    "projector",
)


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel, torch.compile and PEFT wrappers; LoRA layers stay in place."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return model


def attention_of(model: Any) -> str | None:
    """The implementation of attention that the language model runs, such as "sdpa"."""
    name: str | None = model.config.get_text_config(decoder=True)._attn_implementation
    return name


def without_compile(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``; any other as it is."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def find_decoder(model: Any) -> Decoder:
    """The one stack of ``num_hidden_layers`` layers that is not part of another modality, and the norm behind it.

    Args:
        model: a transformers model with a text configuration.
    Raises:
        MirError: if the model is an encoder-decoder, or if no stack, several stacks, or no single norm is found.
    """
    require_decoder_only(model)
    text_config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    n_layers = getattr(text_config, "num_hidden_layers", None)
    if n_layers is None:
        raise MirError(
            f"{name} cannot be measured: its configuration ({text_config.model_type}) does not say how many decoder "
            "layers its language model has (num_hidden_layers)."
        )
    stacks = _layer_stacks(model, int(n_layers))
    if len(stacks) != 1:
        found = ", ".join(stacks) or "none"
        raise MirError(
            f"{name} should hold one list of {n_layers} decoder layers (num_hidden_layers of its "
            f"{text_config.model_type} configuration); found: {found}. This architecture needs an adapter of its own."
        )
    [path] = stacks
    parent = model.get_submodule(path.rpartition(".")[0])
    return Decoder(
        layers=tuple(stacks[path]),
        final_norm=_final_norm(parent, path, name, getattr(text_config, "hidden_size", None)),
        layer_kinds=tuple(getattr(text_config, "layer_types", None) or ()),
    )


def require_decoder_only(model: Any) -> None:
    """Raise MirError for a model whose images and text never meet in the sequence of one decoder."""
    text_config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise MirError(
            f"{type(model).__name__} has an encoder-decoder language model ({text_config.model_type}). MIR compares "
            "image and text in the sequence of one decoder; use a variant with a decoder-only language model."
        )


def owner_of_layers(model: nn.Module, decoder: Decoder) -> nn.Module:
    """The module whose forward pass calls the decoder layers one after another."""
    lists = {
        child: module for module in model.modules() for child in module.children() if isinstance(child, nn.ModuleList)
    }
    return next(module for child, module in lists.items() if len(child) and child[0] is decoder.layers[0])


def of_another_modality(path: str) -> bool:
    """Whether a module path lies in a vision tower, a projector or the like."""
    return any(part in path.lower() for part in _OTHER_MODALITIES)


def _layer_stacks(model: nn.Module, n_layers: int) -> dict[str, nn.ModuleList]:
    """Module lists of the right length by path, without those of other modalities and those inside another one."""
    stacks: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        if of_another_modality(path):
            continue
        if any(path.startswith(f"{outer}.") for outer in stacks):
            continue
        stacks[path] = module
    return stacks


def final_norm_beside(parent: nn.Module, path: str, name: str) -> nn.Module:
    """The one norm among the modules beside the decoder layers; ``path`` and ``name`` are for the message.

    Raises:
        MirError: if there is none, or there are several.
    """
    return _final_norm(parent, path, name, None)


def _final_norm(parent: nn.Module, path: str, name: str, width: int | None) -> nn.Module:
    """The norm beside the layers, told from norms of the embeddings and of inputs of another width.

    That it follows the last layer is proved when a sample runs through the model.
    """
    norms = {child: module for child, module in parent.named_children() if "norm" in type(module).__name__.lower()}
    if len(norms) > 1:
        norms = {child: module for child, module in norms.items() if _scales(module) in (None, (width,))}
    if len(norms) > 1:
        norms = {child: module for child, module in norms.items() if "emb" not in child}
    if len(norms) != 1:
        others = ", ".join(child for child, _ in parent.named_children())
        raise MirError(
            f"{name} should hold one final norm beside its decoder layers {path!r}; found: "
            f"{', '.join(norms) or f'none (there are {others})'}. MIR takes the last hidden state after that norm. "
            "This architecture needs an adapter of its own."
        )
    return next(iter(norms.values()))


def _scales(norm: nn.Module) -> tuple[int, ...] | None:
    """Shape of a norm's weight; None where it has none, or none that can be seen."""
    weight = getattr(norm, "weight", None)
    shape = tuple(getattr(weight, "ds_shape", getattr(weight, "shape", ())))  # ZeRO stage 3 keeps the whole shape there
    return shape or None
