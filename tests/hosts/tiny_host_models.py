"""Tiny random checkpoints for model classes of hosts, beyond the families of ``adapters/tiny_models.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from adapters.tiny_models import (
    CHATML,
    CLIP,
    QWEN3_VISION,
    QWEN_CHAT,
    ROPE,
    TEXT,
    TINY_MODELS,
    TinyModel,
    qwen3_vl_moe,
    tiny_tokenizer,
)

ROOM = {**TEXT, "max_position_embeddings": 4096}  # hosts set image sizes of their own
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def finished(model: Any, processor: Any, image: str) -> TinyModel:
    """Weights that make layers differ visibly, and a conversation template with this image token."""
    processor.chat_template = image if "{%" in image else CHATML.replace("IMAGE", image)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return TinyModel(model.eval(), processor)


def qwen2_vl() -> TinyModel:
    tokenizer, ids, images, videos = _qwen_parts()
    config = tf.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 16,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 4,
        },
        text_config={**ROOM, "rope_parameters": ROPE},
        **ids,
    )
    processor = tf.Qwen2VLProcessor(images, tokenizer, videos)
    return finished(tf.Qwen2VLForConditionalGeneration(config), processor, QWEN_CHAT)


def qwen3_5() -> TinyModel:
    """Linear attention in one layer, full attention in the other."""
    tokenizer, ids, images, videos = _qwen_parts()
    vision = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    config = tf.Qwen3_5Config(
        vision_config=vision,
        text_config={
            **ROOM,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "rope_parameters": {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25},
        },
        **ids,
    )
    processor = tf.Qwen3VLProcessor(images, tokenizer, videos)
    return finished(tf.Qwen3_5ForConditionalGeneration(config), processor, QWEN_CHAT)


def _qwen_parts() -> tuple[Any, dict[str, int], Any, Any]:
    tokenizer = tiny_tokenizer(QWEN_TOKENS)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_TOKENS.items()}
    size = {"shortest_edge": 4 * 4**2, "longest_edge": 64 * 4**2}
    images = tf.Qwen2VLImageProcessorPil(patch_size=4, temporal_patch_size=2, merge_size=2, size=size)
    return tokenizer, ids, images, tf.Qwen2VLVideoProcessor(patch_size=4, size=size)


def glm4v() -> TinyModel:
    tokens = {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }
    tokenizer = tiny_tokenizer(tokens)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    config = tf.Glm4vConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "out_hidden_size": 16,
            "intermediate_size": 24,
        },
        text_config={**ROOM, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
        **ids,
    )
    size = {"shortest_edge": 4 * 4**2, "longest_edge": 64 * 4**2}
    images = tf.Glm4vImageProcessorPil(size=size, patch_size=4)
    processor = tf.Glm4vProcessor(images, tokenizer, tf.Glm4vVideoProcessor(size=size, patch_size=4))
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    return finished(tf.Glm4vForConditionalGeneration(config), processor, image)


def mistral3() -> TinyModel:
    tokenizer = tiny_tokenizer(
        {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    )
    config = tf.Mistral3Config(
        vision_config=tf.PixtralVisionConfig(**CLIP, image_size=32, patch_size=4),
        text_config=tf.MistralConfig(**ROOM, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        tie_word_embeddings=False,
    )
    images = tf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    processor = tf.PixtralProcessor(images, tokenizer, patch_size=4, spatial_merge_size=2)
    return finished(tf.Mistral3ForConditionalGeneration(config), processor, "[IMG]")


def idefics2() -> TinyModel:
    tokenizer = tiny_tokenizer(plain=("<fake_token_around_image>", "<image>", "<end_of_utterance>"))
    config = tf.Idefics2Config(
        vision_config={**CLIP, "image_size": 32, "patch_size": 4},
        perceiver_config={
            "hidden_size": 16,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        text_config=tf.MistralConfig(**ROOM, sliding_window=None),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = tf.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False)
    processor = tf.Idefics2Processor(images, tokenizer, image_seq_len=4)
    return finished(tf.Idefics2ForConditionalGeneration(config), processor, "<image>")


BUILDERS: dict[str, Callable[[], TinyModel]] = {
    **TINY_MODELS,
    **{builder.__name__: builder for builder in (qwen2_vl, qwen3_5, glm4v, mistral3, idefics2, qwen3_vl_moe)},
}


def save_checkpoint(name: str, folder: Path) -> Path:
    """Write a tiny checkpoint with its processor; the same bytes every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = BUILDERS[name]()
    if getattr(tiny.processor, "chat_template", None) is None and name == "llava":
        tiny.processor.chat_template = CHATML.replace("IMAGE", "<image>")
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder
