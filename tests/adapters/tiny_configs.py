"""Small configurations of every image-text type that transformers knows, from its own defaults.

A default configuration describes a published model. Widths, depths and vocabularies are made small by the names that
they have everywhere; what a type wants besides stands in ``CHANGES``, by path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

MODEL_TYPES: Mapping[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)  # type → name of its class

WIDTH, HEADS, HEAD_WIDTH = 32, 4, 8
TEXT_LAYERS, OTHER_LAYERS = 4, 2
IMAGE_SIZE, PATCH_SIZE = WIDTH, HEAD_WIDTH
# As adapters.tiny_models.tiny_tokenizer numbers them when the image token is its first plain token.
BOS, EOS, PAD, IMAGE_TOKEN = 256, 257, 258, 259

_NAMES_OF_SIZE: Mapping[int, str] = {
    1: "n_group topk_group n_shared_experts moe_num_shared_experts",
    OTHER_LAYERS: "num_hidden_layers depth num_layers encoder_layers decoder_layers num_decoder_layers n_layers "
    "resampler_depth swa_num_key_value_heads "
    "num_key_value_heads num_global_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k "
    "top_k_experts type_vocab_size n_groups",
    HEADS: "num_attention_heads num_heads encoder_attention_heads decoder_attention_heads resampler_n_heads "
    "num_sliding_attention_heads swa_num_attention_heads linear_num_value_heads num_experts n_routed_experts "
    "num_local_experts moe_num_experts mm_tokens_per_image",
    6: "num_query_tokens",
    HEAD_WIDTH: "head_dim global_head_dim swa_head_dim d_kv resampler_head_dim qk_nope_head_dim qk_rope_head_dim "
    "v_head_dim linear_key_head_dim linear_value_head_dim ssm_state_size mamba_head_dim mamba_num_heads patch_size "
    "spatial_patch_size",
    16: "q_lora_rank kv_lora_rank qk_head_dim hidden_size_per_layer_input num_position_embeddings",
    WIDTH: "hidden_size d_model embed_dim out_hidden_size encoder_hidden_size output_hidden_size projection_dim "
    "cross_attention_hidden_size word_embed_proj_dim mm_hidden_size text_hidden_size vision_hidden_size output_dim "
    "projector_hidden_size image_text_hidden_size vision_output_dim mm_embed_dim moe_hidden_size projector_input_dim "
    "projector_output_dim image_size window_size",
    64: "intermediate_size ffn_dim mlp_dim d_ff moe_intermediate_size encoder_ffn_dim decoder_ffn_dim share_expert_dim "
    "shared_expert_intermediate_size alignment_intermediate_size intermediate_size_mlp dense_intermediate_size "
    "shared_intermediate_size sliding_window ngram_vocab_size_base",
    512: "vocab_size vocab_size_per_layer_input",
    2048: "max_position_embeddings",
}
_SIZES = {name: size for size, names in _NAMES_OF_SIZE.items() for name in names.split()}
_TEXT_PARTS = ("text_config", "decoder", "thinker_config", "language_config", "llm_config")
# Chameleon writes the digits of an image code as letters.
_CODES = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": 300 + code for code in range(16)}
_VQ = {"embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
_DOTS_SLIDING = {
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 2 * HEAD_WIDTH,
    "qk_nope_head_dim": HEAD_WIDTH,
    "qk_rope_head_dim": HEAD_WIDTH,
    "v_head_dim": HEAD_WIDTH,
}


def _for_each(model_types: str, changes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(model_types.split(), changes)


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


_THREE_AXES = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 1.0,
}
_TILES = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
_GEMMA4_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": OTHER_LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_WIDTH,
    "patch_size": PATCH_SIZE,
    "pooling_kernel_size": 2,
}

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    "blip-2": {"image_token_index": IMAGE_TOKEN},
    "instructblip": {"image_token_index": IMAGE_TOKEN},
    "chameleon": {
        "vocabulary_map": {"<image>": IMAGE_TOKEN, **_CODES},
        **_below("vq_config", {**_VQ, "num_embeddings": 16, "resolution": IMAGE_SIZE}),
    },
    "cohere_compass": {
        "text_config.rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _THREE_AXES)
    },
    "deepseek_ocr2": {
        "vision_config.sam_config.downsample_channels": [16, WIDTH],
        "text_config.mlp_layer_types": ["dense"] * TEXT_LAYERS,
        "text_config.num_experts_per_tok": 2,
    },
    "diffusion_gemma": _below("text_config", {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}),
    "dots3_note": _below(
        "text_config",
        {
            "num_key_value_heads": HEADS,
            "per_layer_config": dict.fromkeys(range(1, TEXT_LAYERS, 2), _DOTS_SLIDING),
        },
    )
    | _below("vision_config", {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH})
    | _below("audio_config", {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH}),
    "emu3": {
        "vocabulary_map": {
            "<image>": IMAGE_TOKEN,
            "<|extra_200|>": 299,
            **{f"<|visual token {code:06d}|>": 300 + code for code in range(16)},
        },
        **_below("vq_config", {**_VQ, "codebook_size": 16, "attn_resolutions": []}),
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    },
    "fast_vlm": _below("vision_config", {"architecture": "test_efficientnet", "model_args": {}, "hidden_size": 256}),
    "florence2": _below(
        "vision_config",
        {
            "embed_dim": [16, 32],
            "depths": [1, 1],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
        },
    ),
    "gemma3n": {
        "text_config.num_kv_shared_layers": 2,
        "text_config.laurel_rank": 8,
        "vision_config.architecture": "test_efficientnet",
        "vision_config.hidden_size": 256,
        "vision_soft_tokens_per_image": 4,
    },
    "gemma4": {"vision_config": _GEMMA4_VISION},
    "gemma4_unified": {
        "vision_config": {
            "patch_size": PATCH_SIZE,
            "pooling_kernel_size": 1,
            "mm_embed_dim": WIDTH,
            "mm_posemb_size": 16,
            "output_proj_dims": WIDTH,
        }
    },
    **_for_each(
        "glm46v glm4v glm_ocr glmga paddleocr_vl qwen2_5_vl qwen2_vl qwen3_vl qwen3_vl_moe",
        {"text_config.rope_parameters": _THREE_AXES},
    ),
    "glm4v_moe": {"text_config.rope_parameters": _THREE_AXES, "text_config.partial_rotary_factor": 1.0},
    "glm5_next": {"text_config.num_key_value_heads": HEADS},
    "granite4_vision": {
        **_TILES,
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [0, 1, 2, 3],
        "vision_config.hidden_size": 64,  # the Q-Former has a head for every 64
        **_below("qformer_config", {"hidden_size": 64, "encoder_hidden_size": 64}),
    },
    "hunyuan_vl": {
        "text_config.head_dim": HEAD_WIDTH,
        "text_config.rope_parameters": {**_THREE_AXES, "mrope_section": [1, 1, 1, 1]},
    },
    "janus": {**_below("vq_config", {**_VQ, "num_embeddings": 16}), "vision_config.num_image_tokens": 16},
    **_for_each("llava_next llava_next_video llava_onevision", _TILES),
    "llama4": {"vision_config.intermediate_size": 4 * WIDTH, "text_config.num_experts_per_tok": 1},
    "kimi_k25": {"projection_hidden_size": WIDTH, "text_config.num_key_value_heads": HEADS},
    **_for_each("minicpm_ocr minicpmv4_6 minicpmv4_7 nemotron_h_omni", {"image_token_id": IMAGE_TOKEN}),
    "mistral_large4": {"text_config.num_key_value_heads": HEADS},
    "molmo2": {"image_patch_id": IMAGE_TOKEN},
    **_for_each(
        "muse_glimmer muse_spark",
        {"out_hidden_size": 4 * WIDTH, "vision_config.pos_emb_height": 4, "vision_config.pos_emb_width": 4},
    ),
    "perception_lm": {"vision_config.architecture": "test_vit", "vision_config.model_args": {"embed_dim": 64}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 300, "text_config.rope_parameters": _THREE_AXES},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 300, "text_config.rope_parameters": _THREE_AXES},
    "step3p7": {"text_config.sliding_window": 64},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [16, WIDTH]},
    "qwen4_exp": _below(
        "text_config",
        {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": HEAD_WIDTH,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "output_gate_type": "sigmoid",
            "hc_lowrank": 8,
        },
    ),
}


def tiny_config(model_type: str) -> Any:
    """The type's default configuration, made small."""
    of_type = transformers.CONFIG_MAPPING[model_type]
    default = of_type().to_dict()
    small = _shrunk(default, is_text=not any(name in default for name in _TEXT_PARTS), token_ids={"image": IMAGE_TOKEN})
    for path, value in CHANGES.get(model_type, {}).items():
        *parents, name = path.split(".")
        part = small
        for parent in parents:
            part = part[parent]
        name = "rope_scaling" if name == "rope_parameters" and name not in part else name  # transformers 4
        part[name] = value
    return of_type.from_dict(small)


def _shrunk(config: Mapping[str, Any], *, is_text: bool, token_ids: dict[str, int]) -> dict[str, Any]:
    n_published = config.get("num_hidden_layers") or config.get("depth") or config.get("num_layers")
    n_layers = TEXT_LAYERS if is_text else OTHER_LAYERS
    small: dict[str, Any] = {}
    for name, value in config.items():
        if name == "per_layer_config" and value:
            kinds = config.get("layer_types") or config["mlp_layer_types"]
            small[name] = _of_layers(value, kinds, n_layers, token_ids)
        elif isinstance(value, dict) and (name.endswith("_config") or name in ("encoder", "decoder")):
            small[name] = _shrunk(value, is_text=name in _TEXT_PARTS, token_ids=token_ids)
        elif name == "rope_parameters" and isinstance(value, dict):
            small[name] = _rotation(value)
        elif isinstance(value, list) and len(value) == n_published:
            small[name] = _of_each_kind(value, n_layers)
        else:
            small[name] = _small_value(name, value, n_layers, token_ids)
    return small


def _small_value(name: str, value: Any, n_layers: int, token_ids: dict[str, int]) -> Any:
    if isinstance(value, bool) or not value:
        return value
    kind = name.removesuffix("_token_index").removesuffix("_token_id")
    if kind != name:
        fixed = {"bos": BOS, "eos": EOS, "pad": PAD}
        return fixed[kind] if kind in fixed else token_ids.setdefault(kind, IMAGE_TOKEN + len(token_ids))
    if name in ("num_hidden_layers", "num_layers"):
        return n_layers
    if name == "initializer_range":  # 1e-10 in SAM's: nothing of the image would come through
        return 0.02
    if name in _SIZES and isinstance(value, (int, float)):
        return _SIZES[name]
    if name in ("image_size", "patch_size", "moe_intermediate_size"):
        return [_SIZES[name]] * len(value)
    if isinstance(value, list) and name.endswith(("_indexes", "_indices")):
        return [0, 1][: len(value)]
    if isinstance(value, list) and name in ("vision_feature_layer", "vision_feature_layers"):
        return [-1, -2][: len(value)]
    return value


def _of_each_kind(values: Sequence[Any], n_layers: int) -> list[Any]:
    """What the layers are in turn, so that a few layers have every kind."""
    kinds = [value for index, value in enumerate(values) if value not in values[:index]]
    return [kinds[layer % len(kinds)] for layer in range(n_layers)]


def _of_layers(
    of_layer: Mapping[Any, Any], kinds: Sequence[str], n_layers: int, token_ids: dict[str, int]
) -> dict[int, Any]:
    known = {int(layer): values for layer, values in of_layer.items()}
    first = [kinds.index(kind) for kind in _of_each_kind(kinds, n_layers)]
    return {
        layer: _shrunk(known[of], is_text=True, token_ids=token_ids) for layer, of in enumerate(first) if of in known
    }


def _rotation(values: Mapping[str, Any]) -> dict[str, Any]:
    small = {name: _rotation(value) if isinstance(value, dict) else value for name, value in values.items()}
    if values.get("mrope_section"):
        half = int(HEAD_WIDTH * values.get("partial_rotary_factor", 1.0)) // 2
        small["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return small
