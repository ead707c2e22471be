"""Streams the decoder layers of a Hugging Face checkpoint that does not fit into memory.

transformers knows which stored tensor becomes which parameter, so it places the model: decoder layers on accelerate's
"disk", everything else on the device. accelerate would read a layer again for every call. Its hooks are removed, and
the engine reads each layer once for all samples.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.files import skeleton
from mir_plugin.model_adapters.introspection.decoder import find_decoder
from mir_plugin.model_adapters.weights.device import dtype_name
from mir_plugin.model_adapters.weights.key_rules import weights_below
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights, open_weight_file
from mir_plugin.model_adapters.weights.streamed import StreamedLayers, fit_within, n_bytes


@dataclass(frozen=True)
class Placement:
    """transformers' ``device_map`` with the decoder layers on disk, and whether two layers fit on the device."""

    device_map: Mapping[str, str]
    room_for_two: bool


def placement_within(
    device_memory: int, checkpoint: Path, device: torch.device, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> Placement | None:
    """How to load a checkpoint within the allowed memory (bytes); None if the whole model fits.

    Args:
        dtype: of the loaded weights; None keeps the stored one.

    Raises:
        MirError: if not even one layer fits, decoder layers cannot be found, or the files cannot be streamed.
    """
    stored = open_checkpoint_weights(checkpoint)
    model = skeleton(checkpoint, trust_remote_code=trust_remote_code)
    dtype = dtype or model.config.dtype or next(w.dtype for w in stored.values() if w.dtype.is_floating_point)
    layers = find_decoder(model).layers
    sizes = [n_bytes(layer.parameters(), dtype) for layer in layers]
    fit = fit_within(device_memory, layers=sizes, others=n_bytes(model.parameters(), dtype) - sum(sizes))
    if fit.whole:
        return None
    if any(weight.path.suffix != ".safetensors" for weight in stored.values()):
        raise MirError(
            f"{checkpoint} has pickled weights; Hugging Face checkpoints can be streamed from safetensors only. "
            "Leave out --device-memory, or save the checkpoint again with a recent transformers."
        )
    return Placement(dict(_placed(model, _path_of_list(model, layers), str(device))), fit.two_layers)


@contextmanager
def placement_errors(placement: Placement | None) -> Iterator[None]:
    """While loading with a placement: silence messages about offloading, and turn a refusal into a MirError."""
    logger = logging.getLogger("accelerate.big_modeling")  # parameters were offloaded
    level = logger.level
    logger.setLevel(logging.ERROR if placement else level)
    try:
        with warnings.catch_warnings():
            # Parameters outside submodules are placed nevertheless.
            warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
            yield
    except ValueError as error:
        if placement is None or "offload_folder" not in str(error):
            raise
        raise MirError(
            "transformers computes some decoder weights from the stored ones (as in most mixture-of-experts models), "
            "so they cannot be streamed. Leave out --device-memory."
        ) from error
    finally:
        logger.setLevel(level)


def streamed_layers(model: Any, device: torch.device, placement: Placement) -> StreamedLayers:
    """The reader of the decoder layers of a model that was loaded with this placement.

    Raises:
        MirError: if its layers' weights have several dtypes, or a file is damaged.
    """
    from accelerate.hooks import remove_hook_from_module

    index = _offload_index(model)
    remove_hook_from_module(model, recurse=True)
    files = {path: open_weight_file(Path(path)) for path in {entry["safetensors_file"] for entry in index.values()}}
    stored = {name: files[entry["safetensors_file"]][entry["weight_name"]] for name, entry in index.items()}
    layers = find_decoder(model).layers
    path = _path_of_list(model, layers)
    weights = [weights_below(stored, f"{path}.{k}.") for k in range(len(layers))]
    dtypes = {parameter.dtype for layer in layers for parameter in layer.parameters()}
    if dtypes != {model.dtype}:
        raise MirError(
            f"the decoder layers of {type(model).__name__} have weights of several dtypes "
            f"({', '.join(sorted(map(dtype_name, dtypes)))}), which cannot be streamed. Leave out --device-memory."
        )

    return StreamedLayers(layers, weights, device, model.dtype, room_for_two=placement.room_for_two)


def _placed(module: nn.Module, layers: str, device: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The map's entries below ``prefix``, as coarse as possible: accelerate allows no entry inside another."""
    own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    for name in own:
        yield prefix + name, device
    for name, child in module.named_children():
        path = prefix + name
        if path == layers:
            for k, _ in child.named_children():
                yield f"{path}.{k}", "disk"
        elif layers.startswith(f"{path}."):
            yield from _placed(child, layers, device, f"{path}.")
        else:
            yield path, device


def _path_of_list(model: nn.Module, layers: Sequence[nn.Module]) -> str:
    paths: dict[nn.Module, str] = {module: path for path, module in model.named_modules()}
    return paths[layers[0]].rpartition(".")[0]


def _offload_index(model: nn.Module) -> Mapping[str, Mapping[str, str]]:
    """Parameter name → file and key of the parameters that accelerate would read from disk."""
    for module in model.modules():
        source: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if source is not None:
            index: Mapping[str, Mapping[str, str]] = source.dataset.index
            return index
    raise AssertionError("a model with layers on disk has hooks that read them")
