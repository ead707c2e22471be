"""MoCa for training: put it into any transformers vision-language model, save it, load it, take it out again.

    apply_moca(model)                # before Trainer, accelerate, PEFT or DistributedDataParallel wrap it
    Trainer(model, ...).train()
    model.save_pretrained(folder)    # MoCa is among the weights; `mir run folder` measures with it
    load_moca(AutoModelForImageTextToText.from_pretrained(folder), folder)

The model finds the vision tokens of every batch in its ``input_ids``, in training, prefill and padded batches of any
number of images. The names of the released code are kept: ``modality_layernorm.scale`` and ``.shift`` in each layer
(Modality-Integration-Rate commit 07070b9, transformers-4.37.2/src/transformers/models/llama/modeling_llama.py 122-139),
as are its settings ``use_moca`` and ``moca_std`` in the configuration.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import find_decoder, unwrapped
from mir_plugin.model_adapters.introspection.image_positions import (
    image_token_id,
    owner_of,
    require_countable_features,
    vision_mask,
)
from mir_plugin.model_adapters.moca.calibration import (
    CalibratedLayer,
    CarriesMoca,
    ModalityCalibration,
    Swapped,
    VisionPositions,
    calibrate,
    restore_class,
    swap_class,
    uncalibrate,
)
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights, open_weight_file

MOCA_KEY = re.compile(r"(?:.*\.)?layers\.(\d+)\.modality_layernorm\.(scale|shift)")


def apply_moca(model: Any, *, std: float = 0.0) -> VisionPositions:
    """Put a learnable scale and shift for vision tokens at the end of every decoder layer, in place.

    The new parameters, (d,) each, are float32 whatever the model's dtype (in bfloat16, steps below 0.4 % of a scale
    near 1 would be lost) and require gradients; all others are left as they are. Optimisers that spare layer norms
    weight decay by name, as Trainer does, spare these too.

    Args:
        model: a transformers vision-language model, or the ``model`` of an adapter that ``load_adapter`` gave for a
            LLaVA, ShareGPT4V or Mini-Gemini checkpoint in its original format: then the adapter measures and answers
            with MoCa, and trains inside ``adapter.bound_to(batch)``. Where PEFT is used, apply MoCa first and name
            "modality_layernorm" in ``modules_to_save``.
        std: of the noise around 1 and 0 that the parameters start from.
    Returns:
        What knows the vision tokens. Needed by those only who call the model with ``inputs_embeds`` instead of
        ``input_ids``: ``with positions.bound_to(vision_mask): model(...)``.
    Raises:
        MirError: if the model has MoCa already, its layers are streamed from disk, or it is of an architecture whose
            decoder layers or vision tokens cannot be found.
    """
    model = unwrapped(model)
    if not isinstance(model, CarriesMoca):
        require_countable_features(model)
    layers, width = _layers_and_width(model)
    devices = [next(layer.parameters()).device for layer in layers]
    if torch.device("meta") in devices:
        raise MirError("this model's decoder layers are streamed from disk. Load it without device_memory.")
    positions = calibrate(layers, width, std)
    for layer, device in zip(layers, devices, strict=True):
        _calibration_of(layer).to(device)
    if isinstance(model, CarriesMoca):
        model.moca_positions = positions
        return positions
    owner = cast("nn.Module", owner_of(model, "get_image_features"))
    owner.moca_positions = positions  # type: ignore[assignment]
    owner.moca_image_token_id = image_token_id(model, None)  # type: ignore[assignment]
    swap_class(owner, _BindingModel)
    model.config.use_moca, model.config.moca_std = True, std
    return positions


def remove_moca(model: Any) -> None:
    """Take MoCa out again, in place: classes, parameters, state dict and configuration are what they were before.

    Raises:
        MirError: if the model has no MoCa.
    """
    model = unwrapped(model)
    layers = _calibrated_layers(model)
    if isinstance(model, CarriesMoca):
        model.moca_positions = None
        uncalibrate(layers)
        return
    owner = cast("nn.Module", owner_of(model, "get_image_features"))
    restore_class(owner)
    del owner.moca_positions, owner.moca_image_token_id
    uncalibrate(layers)
    del model.config.use_moca, model.config.moca_std


def has_moca(model: Any) -> bool:
    """Whether the model's decoder layers are calibrated."""
    return any(isinstance(module, CalibratedLayer) for module in unwrapped(model).modules())


def moca_parameters(model: Any) -> list[nn.Parameter]:
    """Scale and shift of every layer, for an optimiser group of their own. Raises MirError without MoCa."""
    layers = _calibrated_layers(unwrapped(model))
    return [parameter for layer in layers for parameter in _trained(layer)]


def moca_tensors(model: Any) -> dict[str, Tensor]:
    """The parameters under the released checkpoints' names, ``model.layers.0.modality_layernorm.scale`` and so on.

    Raises:
        MirError: if the model has no MoCa.
    """
    return {
        f"model.layers.{k}.modality_layernorm.{name}": parameter.detach().clone()
        for k, layer in enumerate(_calibrated_layers(unwrapped(model)))
        for name, parameter in zip(("scale", "shift"), _trained(layer), strict=True)
    }


def save_moca(model: Any, path: Path | str) -> None:
    """Write ``moca_tensors`` to a safetensors file. Raises MirError if the model has no MoCa."""
    save_file({name: tensor.cpu() for name, tensor in moca_tensors(model).items()}, path)


def load_moca(model: Any, source: Path | str) -> VisionPositions:
    """Set the model's MoCa to the stored one, applying it where the model has none.

    Args:
        source: a checkpoint folder or a single weights file, of the released code, of transformers, of PEFT, or
            written by ``save_moca``: whatever comes before ``layers.0.modality_layernorm.scale`` does not matter.
    Raises:
        MirError: if the source holds no MoCa, or one for other layers or another width.
    """
    model = unwrapped(model)
    stored = _stored(Path(source))
    layers, width = _layers_and_width(model)
    expected = {(k, name) for k in range(len(layers)) for name in ("scale", "shift")}
    if not stored:
        raise MirError(
            f"{source} contains no MoCa weights: no key ends in layers.N.modality_layernorm.scale or .shift."
        )
    if stored.keys() != expected or any(tensor.shape != (width,) for tensor in stored.values()):
        shapes = sorted({str(tuple(tensor.shape)) for tensor in stored.values()})
        raise MirError(
            f"{source} holds {len(stored)} MoCa tensors of shape {' and '.join(shapes)}, but the model's "
            f"{len(layers)} layers of width {width} each need a scale and a shift. It was trained on another base LLM."
        )
    if not has_moca(model):
        apply_moca(model)
    with torch.no_grad():
        for k, layer in enumerate(layers):
            for name, parameter in zip(("scale", "shift"), _trained(layer), strict=True):
                parameter.copy_(stored[k, name])
    return cast("CalibratedLayer", layers[0]).vision_positions


def _stored(source: Path) -> Mapping[tuple[int, str], Tensor]:
    weights = open_checkpoint_weights(source) if source.is_dir() else open_weight_file(source)
    matches = ((MOCA_KEY.fullmatch(key), weight) for key, weight in weights.items())
    return {(int(match[1]), match[2]): weight.read() for match, weight in matches if match}


def _calibrated_layers(model: Any) -> Sequence[nn.Module]:
    if not has_moca(model):
        raise MirError(f"this {type(model).__name__} has no MoCa; call apply_moca or load_moca first.")
    return _layers_and_width(model)[0]


def _layers_and_width(model: Any) -> tuple[Sequence[nn.Module], int]:
    if isinstance(model, CarriesMoca):
        return model.decoder_layers, model.hidden_size
    return find_decoder(model).layers, int(model.config.get_text_config(decoder=True).hidden_size)


def _calibration_of(layer: nn.Module) -> ModalityCalibration:
    return cast("CalibratedLayer", layer).modality_layernorm


def _trained(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Scale and shift in use: through PEFT's ``modules_to_save``, the active adapter's."""
    calibration = _calibration_of(layer)
    return calibration.scale, calibration.shift


class _BindingModel(Swapped):
    """Mixed in before the module that takes ids and images: tells the decoder layers which tokens are vision tokens."""

    moca_positions: VisionPositions
    moca_image_token_id: int | None

    @classmethod
    def methods_around(cls, plain_class: type[nn.Module]) -> dict[str, Any]:
        """The class's own forward, and a generate that does not call it for every token, while a mask is bound."""
        from transformers import GenerationMixin  # late: checkpoints are recognised without loading transformers

        methods = {"forward": _binding(plain_class.forward)}
        generate = getattr(plain_class, "generate", None)
        if generate is not None and generate is not GenerationMixin.generate:
            methods["generate"] = _binding(generate)  # BLIP-2's hands embeddings to the language model alone
        return methods

    def vision_tokens_in(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Bool (samples, tokens); what the caller bound where there are no ids."""
        if inputs.get("input_ids") is None:
            return self.moca_positions.mask
        return vision_mask(inputs, self.moca_image_token_id)


def _binding(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a model, run while the vision tokens in its arguments are bound; its signature stays.

    Trainer selects a data set's columns by the signature of forward.
    """
    names = [name for name in inspect.signature(method).parameters if name != "self"]

    @functools.wraps(method)
    def bound(self: _BindingModel, *args: Any, **kwargs: Any) -> Any:
        # Not strict: callers give fewer positional arguments than there are parameters.
        mask = self.vision_tokens_in({**dict(zip(names, args, strict=False)), **kwargs})
        if mask is None:
            raise MirError(
                "a model with MoCa was called without input_ids, so its vision tokens are unknown. Call it inside "
                "`with positions.bound_to(vision_mask)`; apply_moca returns the positions."
            )
        n_rows_each = max(kwargs.get("num_beams") or 1, kwargs.get("num_return_sequences") or 1)
        with self.moca_positions.bound_to(mask.repeat_interleave(n_rows_each, dim=0)):
            return method(self, *args, **kwargs)

    return bound
