"""Models of transformers written in the original LLaVA layouts: the published conversion rules, turned round.

Rules: transformers, models/llava_next/convert_llava_next_weights_to_hf.py and
models/llava_onevision/convert_llava_onevision_weights_to_hf.py (KEYS_TO_MODIFY_MAPPING).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from adapters.tiny_models import TEXT, tiny_tokenizer
from safetensors.torch import save_file

_RULES = {
    "model.language_model.": "model.",
    "model.vision_tower.vision_model.": "model.vision_tower.vision_tower.vision_model.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.image_newline": "model.image_newline",
    "lm_head.": "lm_head.",
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SIDE, PATCH = 24, 4
N_EMBEDDINGS = 264  # a few more than the tokenizer has tokens; the last one marks images for transformers
WIDE = {**TEXT, "vocab_size": N_EMBEDDINGS, "max_position_embeddings": 4096}
PINPOINTS = [(24, 48), (48, 24), (48, 48), (72, 24), (24, 72)]
"""(width, height), as the original has them."""


def clip() -> Any:
    return tf.CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=8, **VISION)


def siglip() -> Any:
    return tf.SiglipVisionConfig(image_size=SIDE, patch_size=PATCH, vision_use_head=False, **VISION)


def llm(kind: str) -> Any:
    more: dict[str, Any] = {"pad_token_id": 258}
    if kind in ("gemma", "gemma2", "qwen3"):
        more["head_dim"] = 8
    if kind == "phi":
        more["partial_rotary_factor"] = 0.5
    return tf.CONFIG_MAPPING[kind](**{**WIDE, **more})


def randomised(model: Any) -> Any:
    """Larger weights than the default, so that layers differ visibly."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if "norm" in name else 0.3
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def original_names(model: Any) -> dict[str, torch.Tensor]:
    """The state dict under the original's names; a parameter of several names once."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        ours, theirs = next((a, b) for a, b in _RULES.items() if name.startswith(a))
        renamed[theirs + name.removeprefix(ours)] = tensor.clone()
    if model.config.text_config.model_type == "phi":  # its head has a bias, which transformers' LLaVA leaves out
        renamed["lm_head.bias"] = torch.zeros(N_EMBEDDINGS)
    return renamed


def write_tower(folder: Path, vision_config: Any, model: Any) -> None:
    """The tower's folder: config, image settings and weights as it was before training."""
    folder.mkdir(parents=True)
    vision_config.save_pretrained(folder)
    save_file(
        {name: t.clone() for name, t in model.model.vision_tower.state_dict().items()}, folder / "model.safetensors"
    )
    if vision_config.model_type == "siglip_vision_model":
        settings: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}
    else:
        settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_original(folder: Path, model: Any, text_config: Any, vision_config: Any, **config: Any) -> Path:
    """A full checkpoint of the original code, its tower's folder beside it."""
    folder.mkdir(parents=True)
    write_tower(folder.parent / "tower", vision_config, model)
    save_file(original_names(model), folder / "model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    rope = dict(text_config.rope_parameters)
    fields = {name: value for name, value in text_config.to_dict().items() if name not in ("rope_parameters", "dtype")}
    stated = {
        "model_type": f"llava_{text_config.model_type}",
        "rope_theta": rope["rope_theta"],
        "mm_vision_tower": "tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision_config.hidden_size,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
    }
    if "partial_rotary_factor" in rope:
        stated["partial_rotary_factor"] = rope["partial_rotary_factor"]
    (folder / "config.json").write_text(json.dumps({**fields, **stated, **config}))
    return folder
