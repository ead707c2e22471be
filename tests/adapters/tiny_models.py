"""Tiny random models of ten Hugging Face families, with processors built by hand: no download, a second in all.

Widths are small, but every mechanism that matters is there: tiles, separators, features added between layers, two
kinds of attention mask, Q-Formers. Weights are larger than the default initialisation, so that layers differ visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@dataclass(frozen=True)
class TinyModel:
    """A model in eval mode, and the processor that belongs to it."""

    model: Any
    processor: Any


def tiny_tokenizer(named: dict[str, str] | None = None, plain: tuple[str, ...] = ()) -> Any:
    """One token per byte of text (ids 0-255), then bos, eos, pad and the given special tokens, in that order."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = named or {}
    specials = ("<s>", "</s>", "<pad>", *named.values(), *plain, "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_specific_special_tokens=named,
    )


def _finish(model: Any, processor: Any, template: str | None = None) -> TinyModel:
    if template is not None:
        processor.chat_template = template
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
    return TinyModel(model.eval(), processor)


def _image_id(tokenizer: Any, token: str = "<image>") -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def llava() -> TinyModel:
    tokenizer = tiny_tokenizer({"image_token": "<image>"})
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP, image_size=16, patch_size=4),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=_image_id(tokenizer),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    resizing_with_pil = getattr(tf, "CLIPImageProcessorPil", tf.CLIPImageProcessor)  # its name before 5.4
    images = resizing_with_pil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = tf.LlavaProcessor(images, tokenizer, 4, "default", num_additional_image_tokens=1)
    return _finish(tf.LlavaForConditionalGeneration(config), processor)


def llava_next() -> TinyModel:
    tokenizer = tiny_tokenizer({"image_token": "<image>"})
    grid = [[16, 32], [32, 16], [32, 32]]
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP, image_size=16, patch_size=4),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=_image_id(tokenizer),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
    )
    processor = tf.LlavaNextProcessor(images, tokenizer, 4, "default", num_additional_image_tokens=1)
    return _finish(tf.LlavaNextForConditionalGeneration(config), processor, CHATML.replace("IMAGE", "<image>"))


def llava_onevision() -> TinyModel:
    tokenizer = tiny_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    grid = [[16, 32], [32, 16], [32, 32]]
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**CLIP, image_size=16, patch_size=4, vision_use_head=False),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=_image_id(tokenizer),
        video_token_id=_image_id(tokenizer, "<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=grid),
        tokenizer,
        tf.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return _finish(tf.LlavaOnevisionForConditionalGeneration(config), processor, CHATML.replace("IMAGE", "<image>"))


def _qwen_parts(patch_size: int) -> tuple[Any, dict[str, int], Any, Any]:
    tokens = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = tiny_tokenizer(tokens)
    ids = {f"{name}_id": _image_id(tokenizer, token) for name, token in tokens.items()}
    size = {"shortest_edge": 4 * patch_size**2, "longest_edge": 64 * patch_size**2}
    images = tf.Qwen2VLImageProcessorPil(patch_size=patch_size, temporal_patch_size=2, merge_size=2, size=size)
    return tokenizer, ids, images, size


QWEN_CHAT = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_5_vl() -> TinyModel:
    tokenizer, ids, images, size = _qwen_parts(4)
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_patch_size": 4,
            "out_hidden_size": 16,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": ROPE},
        **ids,
    )
    videos = tf.Qwen2VLVideoProcessor(patch_size=4, size=size)
    processor = tf.Qwen2_5_VLProcessor(images, tokenizer, videos)
    return _finish(tf.Qwen2_5_VLForConditionalGeneration(config), processor, QWEN_CHAT)


QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
QWEN3_TEXT = {**TEXT, "head_dim": 8, "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}


def qwen3_vl() -> TinyModel:
    tokenizer, ids, images, size = _qwen_parts(4)
    config = tf.Qwen3VLConfig(
        vision_config=QWEN3_VISION,
        text_config=QWEN3_TEXT,
        **ids,
    )
    videos = tf.Qwen3VLVideoProcessor(patch_size=4, size=size)
    processor = tf.Qwen3VLProcessor(images, tokenizer, videos)
    return _finish(tf.Qwen3VLForConditionalGeneration(config), processor, QWEN_CHAT)


def qwen3_vl_moe() -> TinyModel:
    """A mixture of experts, whose stored experts transformers transposes: like the others once it is in memory."""
    tokenizer, ids, images, size = _qwen_parts(4)
    config = tf.Qwen3VLMoeConfig(
        vision_config=QWEN3_VISION,
        text_config={
            **QWEN3_TEXT,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
        **ids,
    )
    videos = tf.Qwen3VLVideoProcessor(patch_size=4, size=size)
    processor = tf.Qwen3VLProcessor(images, tokenizer, videos)
    return _finish(tf.Qwen3VLMoeForConditionalGeneration(config), processor, QWEN_CHAT)


def gemma3() -> TinyModel:
    tokenizer = tiny_tokenizer(
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    )
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**CLIP, image_size=16, patch_size=4, vision_use_head=False),
        text_config=tf.Gemma3TextConfig(
            **{**TEXT, "num_hidden_layers": 4},
            head_dim=8,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        mm_tokens_per_image=4,
        image_token_id=_image_id(tokenizer, "<image_soft_token>"),
        boi_token_id=_image_id(tokenizer, "<start_of_image>"),
        eoi_token_id=_image_id(tokenizer, "<end_of_image>"),
    )
    images = tf.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = tf.Gemma3Processor(images, tokenizer, image_seq_length=4)
    template = "{{ bos_token }}" + CHATML.replace("IMAGE", "<start_of_image>")
    return _finish(tf.Gemma3ForConditionalGeneration(config), processor, template)


def internvl() -> TinyModel:
    tokens = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    tokenizer = tiny_tokenizer(tokens)
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**CLIP, image_size=[16, 16], patch_size=[4, 4]),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=_image_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = tf.GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos = tf.InternVLVideoProcessor(size={"height": 16, "width": 16})
    processor = tf.InternVLProcessor(images, tokenizer, videos, image_seq_length=4)
    return _finish(tf.InternVLForConditionalGeneration(config), processor, CHATML.replace("IMAGE", "<IMG_CONTEXT>"))


def idefics3() -> TinyModel:
    rows = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
    plain = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    tokenizer = tiny_tokenizer(plain=plain)
    config = tf.Idefics3Config(
        vision_config={**CLIP, "image_size": 16, "patch_size": 4},
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=_image_id(tokenizer),
        scale_factor=2,
        pad_token_id=258,
    )
    images = tf.Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = tf.Idefics3Processor(images, tokenizer, image_seq_len=4)
    return _finish(tf.Idefics3ForConditionalGeneration(config), processor, CHATML.replace("IMAGE", "<image>"))


def paligemma() -> TinyModel:
    tokenizer = tiny_tokenizer({"image_token": "<image>"})
    images = tf.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(images, tokenizer)
    vision = {**CLIP, "image_size": 16, "patch_size": 4, "vision_use_head": False, "projection_dim": 16}
    config = tf.PaliGemmaConfig(
        vision_config={**vision, "model_type": "siglip_vision_model"},
        text_config=tf.GemmaConfig(**{**TEXT, "vocab_size": 2000}, head_dim=8),
        image_token_id=_image_id(tokenizer),
        projection_dim=16,
    )
    return _finish(tf.PaliGemmaForConditionalGeneration(config), processor)


def _blip_parts(n_query_tokens: int) -> tuple[Any, Any, Any, Any]:
    tokenizer = tiny_tokenizer({}, plain=("<image>",))
    vision = tf.Blip2VisionConfig(**CLIP, image_size=16, patch_size=4)
    text = tf.OPTConfig(
        vocab_size=400,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=512,
        word_embed_proj_dim=16,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    images = tf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    return tokenizer, vision, text, images


QFORMER = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_hidden_size": 16,
    "cross_attention_frequency": 1,
}


def blip2() -> TinyModel:
    tokenizer, vision, text, images = _blip_parts(6)
    config = tf.Blip2Config(
        vision_config=vision,
        qformer_config=tf.Blip2QFormerConfig(**QFORMER),
        text_config=text,
        num_query_tokens=6,
        image_token_index=_image_id(tokenizer),
    )
    processor = tf.Blip2Processor(images, tokenizer, num_query_tokens=6)
    return _finish(tf.Blip2ForConditionalGeneration(config), processor)


def instructblip() -> TinyModel:
    tokenizer, _, text, images = _blip_parts(6)
    config = tf.InstructBlipConfig(
        vision_config=tf.InstructBlipVisionConfig(**CLIP, image_size=16, patch_size=4).to_dict(),
        qformer_config=tf.InstructBlipQFormerConfig(**QFORMER).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=6,
        image_token_index=_image_id(tokenizer),
    )
    instruction_tokenizer = tiny_tokenizer()
    instruction_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    processor = tf.InstructBlipProcessor(images, tokenizer, instruction_tokenizer, num_query_tokens=6)
    return _finish(tf.InstructBlipForConditionalGeneration(config), processor)


def _seeded(builder: Callable[[], TinyModel]) -> Callable[[], TinyModel]:
    def build() -> TinyModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return builder()

    return build


TINY_MODELS: dict[str, Callable[[], TinyModel]] = {
    builder.__name__: _seeded(builder)
    for builder in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_5_vl,
        qwen3_vl,
        gemma3,
        internvl,
        idefics3,
        paligemma,
        blip2,
        instructblip,
    )
}
