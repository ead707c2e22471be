"""Writes a randomly initialised checkpoint in the original LLaVA format, of any size, with its CLIP tower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from mir_plugin.samples.embedded import prose_passages

IMAGE_SIZE, PATCH_SIZE = 336, 14  # 24 x 24 patches: 576 vision tokens


@dataclass(frozen=True)
class Size:
    """Dimensions of a synthetic LLaVA; the defaults are the checkpoint that figures are promised for."""

    n_layers: int = 12
    d: int = 768
    n_heads: int = 12
    intermediate: int = 2048
    vocabulary: int = 32000
    tower_layers: int = 6
    tower_width: int = 384
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Folder name."""
        return f"llava-{self.n_layers}x{self.d}-{str(self.dtype).removeprefix('torch.')}"


VICUNA_7B = Size(
    n_layers=32, d=4096, n_heads=32, intermediate=11008, tower_layers=24, tower_width=1024, dtype=torch.bfloat16
)

TINY = Size(
    n_layers=2, d=64, n_heads=2, intermediate=128, vocabulary=4096, tower_layers=2, tower_width=64, dtype=torch.bfloat16
)


def write_checkpoint(size: Size, parent: Path, seed: int = 0) -> Path:
    """Write the checkpoint into ``parent`` unless it is there; returns its folder."""
    folder = parent / size.name
    if (folder / "config.json").is_file():  # written last
        return folder
    (folder / "vision_tower").mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    _write_tokenizer(folder, size.vocabulary)
    _write_shards(folder, size, generator)
    tower = {"vision_model." + name: value for name, value in _tensors(_tower_shapes(size), torch.float32, generator)}
    save_file(tower, folder / "vision_tower" / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "vision_tower" / "config.json", _tower_config(size))
    _write_json(folder / "vision_tower" / "preprocessor_config.json", _preprocessor_config())
    _write_json(folder / "config.json", _config(size))
    return folder


def _write_shards(folder: Path, size: Size, generator: torch.Generator) -> None:
    """One shard a layer and one for the rest, so that a checkpoint larger than memory can be written."""
    weight_map: dict[str, str] = {}
    groups = [_layer_shapes(size, k) for k in range(size.n_layers)] + [_other_shapes(size)]
    for index, shapes in enumerate(groups, start=1):
        name = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        save_file(dict(_tensors(shapes, size.dtype, generator)), folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _tensors(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        is_norm = "norm" in name or "layrnorm" in name
        if name.endswith("bias"):
            value = torch.zeros(shape)
        elif is_norm:
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        yield name, value.to(dtype)


def _layer_shapes(size: Size, k: int) -> dict[str, tuple[int, ...]]:
    d, inner = size.d, size.intermediate
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{part}_proj.weight": (d, d) for part in "qkvo"}
    shapes |= {"mlp.gate_proj.weight": (inner, d), "mlp.up_proj.weight": (inner, d), "mlp.down_proj.weight": (d, inner)}
    shapes |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    return {f"model.layers.{k}.{name}": shape for name, shape in shapes.items()}


def _other_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    d = size.d
    return {
        "model.embed_tokens.weight": (size.vocabulary, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (size.vocabulary, d),
        "model.mm_projector.0.weight": (d, size.tower_width),
        "model.mm_projector.0.bias": (d,),
        "model.mm_projector.2.weight": (d, d),
        "model.mm_projector.2.bias": (d,),
    }


def _tower_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    width = size.tower_width
    n_positions = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, PATCH_SIZE, PATCH_SIZE),
        "embeddings.position_embedding.weight": (n_positions, width),
    }
    linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for k in range(size.tower_layers):
        for name, shape in linear.items():
            shapes[f"encoder.layers.{k}.{name}.weight"] = shape
            shapes[f"encoder.layers.{k}.{name}.bias"] = shape[:1]
        shapes |= _layer_norm(f"encoder.layers.{k}.layer_norm1", width)
        shapes |= _layer_norm(f"encoder.layers.{k}.layer_norm2", width)
    return shapes | _layer_norm("pre_layrnorm", width) | _layer_norm("post_layernorm", width)


def _layer_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "hidden_size": size.d,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_heads,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": str(size.dtype).removeprefix("torch."),
        "mm_vision_tower": "vision_tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": size.tower_width,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
    }


def _tower_config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": size.tower_width,
        "intermediate_size": 4 * size.tower_width,
        "num_hidden_layers": size.tower_layers,
        "num_attention_heads": size.tower_width // 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "size": {"shortest_edge": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A sentencepiece tokenizer learnt from the embedded prose: 4000 pieces, about as dense as Llama's, and as many
    that no text holds as fill the vocabulary."""
    n_learnt = 4000
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose_passages()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocabulary,
        user_defined_symbols=[f"<unused-{index}>" for index in range(vocabulary - n_learnt)],
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "tokenizer_class": "LlamaTokenizer"}
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
