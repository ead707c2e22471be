"""Writes a LLaVA-1.5 of transformers, with its MoCa if it has one, as a checkpoint of the original LLaVA code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import unwrapped
from mir_plugin.model_adapters.moca.training import has_moca
from mir_plugin.model_adapters.weights.device import dtype_name

# transformers' names → the original's; the first prefix that fits counts.
_PREFIXES = {
    "model.language_model.": "model.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "lm_head.": "lm_head.",
}
_ARCHITECTURES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
_SELECTED_FEATURES = {"default": "patch", "full": "cls_patch"}


def export_llava(model: Any, processor: Any, folder: Path | str) -> None:
    """Write a full checkpoint in the original layout: weights with their original names, MoCa in every layer,
    config.json, tokenizer, and the vision tower in a folder of its own.

    ``mir run`` measures it like any original checkpoint. The original code reads the tokenizer from tokenizer.model,
    which transformers no longer keeps: copy it from the base LLM.

    Args:
        model: a ``LlavaForConditionalGeneration`` with a Llama or Mistral, a CLIP tower and the two-layer projector;
            LoRA merged.
        processor: its processor.
        folder: made if it does not exist.
    Raises:
        MirError: if the model has parts that the original layout has no place for.
    """
    model = unwrapped(model)
    config = _original_config(model)
    weights = {_original_name(name): tensor for name, tensor in model.state_dict().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, folder, filename_pattern="model{suffix}.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    processor.tokenizer.save_pretrained(folder)
    model.model.vision_tower.save_pretrained(folder / config["mm_vision_tower"])
    processor.image_processor.save_pretrained(folder / config["mm_vision_tower"])


def _original_name(name: str) -> str:
    for ours, theirs in _PREFIXES.items():
        if name.startswith(ours) and "lora_" not in name:
            return theirs + name.removeprefix(ours)
    raise MirError(
        f"{name!r} has no place in an original LLaVA checkpoint, which holds {', '.join(_PREFIXES)}* and no LoRA. "
        "Merge LoRA first (merge_and_unload)."
    )


def _original_config(model: Any) -> dict[str, Any]:
    text: Any = getattr(model.config, "text_config", None)
    vision: Any = getattr(model.config, "vision_config", None)
    kinds = tuple(getattr(part, "model_type", None) for part in (model.config, text, vision))
    feature_layer = getattr(model.config, "vision_feature_layer", None)
    if kinds[0] != "llava" or kinds[1] not in _ARCHITECTURES or kinds[2] != "clip_vision_model":
        raise MirError(
            f"a {kinds[0]} model with language model {kinds[1]} and vision tower {kinds[2]} is not a LLaVA-1.5: the "
            "original layout has a Llama or Mistral and a CLIP tower. Keep it as transformers saves it."
        )
    if not isinstance(feature_layer, int):
        raise MirError(f"vision_feature_layer is {feature_layer}; the original code takes one layer's features.")
    rope = dict(text.rope_parameters)
    return {
        **{name: value for name, value in text.to_dict().items() if name not in ("rope_parameters", "dtype")},
        "architectures": [_ARCHITECTURES[text.model_type]],
        "model_type": f"llava_{text.model_type}",
        "torch_dtype": dtype_name(model.dtype),
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope.get("rope_type") == "default" else rope,
        "mm_vision_tower": "vision_tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": feature_layer,
        "mm_vision_select_feature": _SELECTED_FEATURES[model.config.vision_feature_select_strategy],
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": "square",  # shorter side resized, centre cut out: what a CLIP processor does
        "tokenizer_model_max_length": text.max_position_embeddings,
        "tokenizer_padding_side": "right",
        "use_moca": has_moca(model),
        "moca_std": getattr(model.config, "moca_std", 0.0),
    }
