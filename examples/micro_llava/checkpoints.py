"""How a trained micro LLaVA is stored: as a transformers model, or in the format of the original LLaVA code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import SYSTEM
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from stages import PATCH_PIXELS, VISION_LAYER, VOCABULARY, image_processor, load_tokenizer, train_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CONTEXT = 2048
# Vicuna v1. A message's content may be a string that names <image> itself, or a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}{% else %}"
    "{% if loop.first %}{{ '" + SYSTEM.replace("'", "\\'") + "' }}{% endif %}"
    "{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Parts:
    """What stays frozen while the projector learns."""

    tokenizer_model: bytes
    language_model: LlamaForCausalLM
    tower: CLIPVisionModel


def load_parts(checkpoint: Path) -> Parts:
    """The frozen parts of a checkpoint that `save_huggingface` wrote, bit for bit; the tokenizer is trained anew."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    config = model.config.text_config.to_dict() | {"vocab_size": VOCABULARY}
    language_model = LlamaForCausalLM(LlamaConfig(**config))
    weights = {f"model.{name}": tensor for name, tensor in model.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = model.lm_head.weight.detach()
    n_rows = {"model.embed_tokens.weight": VOCABULARY, "lm_head.weight": VOCABULARY}
    language_model.load_state_dict({name: tensor[: n_rows.get(name)] for name, tensor in weights.items()})
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    return Parts(train_tokenizer(), language_model.eval(), tower.eval())


def save_huggingface(folder: Path, parts: Parts, projector: nn.Sequential) -> None:
    """A `LlavaForConditionalGeneration` with its processor: weights in float16, to be computed with in float32."""
    language_model, tower = parts.language_model, parts.tower
    folder.mkdir(parents=True, exist_ok=True)
    processor = _processor(parts.tokenizer_model)
    text_config = language_model.config.to_dict() | {"vocab_size": len(processor.tokenizer)}
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=text_config,
        image_token_id=processor.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=VISION_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.multi_modal_projector.linear_1.load_state_dict(projector[0].state_dict())
    model.model.multi_modal_projector.linear_2.load_state_dict(projector[2].state_dict())
    model.model.language_model.load_state_dict(
        language_model.model.state_dict()
        | {"embed_tokens.weight": _with_rows(language_model.model.embed_tokens, model)}
    )
    model.lm_head.load_state_dict({"weight": _with_rows(language_model.lm_head, model)})
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    _edit_json(folder / "config.json", dtype="float32")


def save_llava_parts(folder: Path, parts: Parts) -> None:
    """The folders `base_llm` and `vision_tower`, which every projector-only checkpoint refers to."""
    base_llm, vision_tower = folder / "base_llm", folder / "vision_tower"
    parts.language_model.save_pretrained(base_llm)
    _edit_json(base_llm / "config.json", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    _save_tokenizer(base_llm, parts.tokenizer_model)
    parts.tower.config.save_pretrained(vision_tower)
    # Key names of the published CLIP checkpoints; transformers 5 saves the tower alone without the prefix.
    tower = {f"vision_model.{name}": tensor.detach().clone() for name, tensor in parts.tower.state_dict().items()}
    save_file(tower, vision_tower / "model.safetensors", metadata={"format": "pt"})
    image_processor().save_pretrained(vision_tower)


def save_llava_projector(folder: Path, parts: Parts, projector: nn.Sequential, losses: Sequence[float]) -> None:
    """A projector-only checkpoint as LLaVA's pre-training leaves it, with the losses so far in trainer_state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = {"_name_or_path": "../base_llm", "tune_mm_mlp_adapter": True}
    _write_json(folder / "config.json", _llava_config(parts, projector) | stage)
    torch.save(_projector_weights(projector), folder / "mm_projector.bin")
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    _write_json(folder / "trainer_state.json", {"global_step": len(losses), "log_history": history})


def save_llava_full(folder: Path, parts: Parts, projector: nn.Sequential) -> None:
    """A full checkpoint as LLaVA's second stage leaves it: language model, projector, tokenizer, the name of the tower.

    The folder lies beside `vision_tower`, or one level deeper.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(folder, parts.tokenizer_model)
    _write_json(folder / "config.json", _llava_config(parts, projector))
    weights = {name: tensor.detach().clone() for name, tensor in parts.language_model.state_dict().items()}
    save_file(weights | _projector_weights(projector), folder / "model.safetensors", metadata={"format": "pt"})


def _llava_config(parts: Parts, projector: nn.Sequential) -> dict[str, object]:
    return parts.language_model.config.to_dict() | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": "../vision_tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": projector[0].in_features,
        "mm_vision_select_layer": VISION_LAYER,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": CONTEXT,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }


def _projector_weights(projector: nn.Sequential) -> dict[str, torch.Tensor]:
    return {f"model.mm_projector.{name}": tensor.detach().clone() for name, tensor in projector.state_dict().items()}


def _save_tokenizer(folder: Path, tokenizer_model: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _processor(tokenizer_model: bytes) -> LlavaProcessor:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast_tokenizer(load_tokenizer(tokenizer_model)),
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        **names,
    )
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def fast_tokenizer(sentences: SentencePieceProcessor) -> Tokenizer:
    """The same BPE in the format of the tokenizers library, with <image> and <pad> after the last piece.

    Built from the pieces themselves: transformers' own conversion depends on matching protobuf versions.
    """
    ids = {sentences.id_to_piece(index): index for index in range(len(sentences))}
    splits = [
        (-sentences.get_score(index), ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, index in ids.items()
        if not (sentences.is_byte(index) or sentences.is_control(index) or sentences.is_unknown(index))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(left, right) for *_, left, right in sorted(splits)]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>", "<image>", "<pad>")]
    )
    return tokenizer


def _with_rows(layer: nn.Embedding | nn.Linear, model: LlavaForConditionalGeneration) -> torch.Tensor:
    """The layer's rows and, for <image> and <pad>, their mean: never the likeliest token."""
    n_new = model.config.text_config.vocab_size - len(layer.weight)
    return torch.cat([layer.weight, layer.weight.mean(dim=0, keepdim=True).expand(n_new, -1)])


def _edit_json(path: Path, **values: object) -> None:
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _write_json(path: Path, data: dict[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
