"""How the packaged micro LLaVA is stored: as a transformers model with its processor."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from examples.replication.captions import SYSTEM
from examples.replication.micro_llava import (
    CONTEXT,
    PATCH_PIXELS,
    VISION_LAYER,
    Parts,
    edit_json,
    image_processor,
    load_tokenizer,
)

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
    edit_json(folder / "config.json", dtype="float32")
    store_for_every_version(folder)


def store_for_every_version(folder: Path) -> None:
    """Rewrite what transformers 5 saves into what 4.57 reads as well; the weights stay bit for bit.

    The CLIP tower's keys get the prefix of the published checkpoints, the image processor a file of its own, and the
    tokenizer the class name that both know.
    """
    weights = load_file(folder / "model.safetensors")
    tower = "vision_tower."
    renamed = {name.replace(tower, f"{tower}vision_model.", 1) if name.startswith(tower) else name: weight
               for name, weight in weights.items()}  # fmt: skip
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "preprocessor_config.json", processor.pop("image_processor"))
    _write_json(folder / "processor_config.json", processor)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    newer = ("backend", "extra_special_tokens")
    kept = {name: value for name, value in tokenizer.items() if name not in newer}
    _write_json(folder / "tokenizer_config.json", kept | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
