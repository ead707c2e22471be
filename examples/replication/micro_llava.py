"""The micro LLaVA's frozen parts as they ship with the package, and its checkpoints in LLaVA's own format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from mir_plugin.samples.embedded import DigitQuestion

VOCABULARY = 768
CONTEXT = 2048
IMAGE_PIXELS, PATCH_PIXELS = 40, 8
VISION_LAYER = -2  # as in LLaVA: patches of the second to last layer, without the class token
TOKENIZER_NAME = "tokenizer.model"
BASE_LLM, VISION_TOWER = "base_llm", "vision_tower"
_PROJECTOR = "model.mm_projector."


@dataclass(frozen=True)
class Parts:
    """What stays frozen while the projector learns."""

    tokenizer_model: bytes
    language_model: LlamaForCausalLM
    tower: CLIPVisionModel


def load_parts(checkpoint: Path) -> Parts:
    """Tower and language model of a packaged checkpoint, bit for bit, and the tokenizer that lies beside it."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    whole: Any = model.config
    config = whole.text_config.to_dict() | {"vocab_size": VOCABULARY}
    language_model = LlamaForCausalLM(LlamaConfig(**config))
    weights = {f"model.{name}": tensor for name, tensor in model.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = model.lm_head.weight.detach()
    n_rows = {"model.embed_tokens.weight": VOCABULARY, "lm_head.weight": VOCABULARY}
    language_model.load_state_dict({name: tensor[: n_rows.get(name)] for name, tensor in weights.items()})
    tower = CLIPVisionModel(whole.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tokenizer_model = (checkpoint.parent / TOKENIZER_NAME).read_bytes()
    return Parts(tokenizer_model, language_model.eval(), tower.eval())


def load_tokenizer(model: bytes) -> SentencePieceProcessor:
    """The tokenizer of a serialised SentencePiece model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def image_processor() -> Any:
    """CLIP's preprocessing at the micro tower's size."""
    # Its name before transformers 5.4 is the plain one.
    resizing_with_pil = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return resizing_with_pil(
        size={"shortest_edge": IMAGE_PIXELS}, crop_size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    )


def pixel_values(digits: Sequence[DigitQuestion]) -> Tensor:
    """Pictures as the tower takes them, (digits, 3, pixels, pixels)."""
    pixels: Tensor = image_processor()([digit.image for digit in digits], return_tensors="pt")["pixel_values"]
    return pixels


@torch.no_grad()
def vision_features(tower: CLIPVisionModel, digits: Sequence[DigitQuestion]) -> Tensor:
    """What the projector receives, (digits, patches, width of the tower)."""
    states = tower.eval()(pixel_values=pixel_values(digits), output_hidden_states=True).hidden_states
    patches: Tensor = states[VISION_LAYER][:, 1:]
    return patches


def new_projector(connector: str, vision_width: int, d: int) -> nn.Sequential:
    """LLaVA's ``mlpNx_gelu`` with PyTorch's own initial weights, drawn from the global generator."""
    n_layers = int(connector.removeprefix("mlp").removesuffix("x_gelu"))
    layers: list[nn.Module] = [nn.Linear(vision_width, d)]
    for _ in range(n_layers - 1):
        layers += [nn.GELU(), nn.Linear(d, d)]
    return nn.Sequential(*layers)


def save_llava_parts(folder: Path, parts: Parts) -> None:
    """The folders `base_llm` and `vision_tower`, which every projector-only checkpoint refers to."""
    base_llm, vision_tower = folder / BASE_LLM, folder / VISION_TOWER
    parts.language_model.save_pretrained(base_llm)
    edit_json(base_llm / "config.json", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    _save_tokenizer(base_llm, parts.tokenizer_model)
    parts.tower.config.save_pretrained(vision_tower)
    # Key names of the published CLIP checkpoints; transformers 5 saves the tower alone without the prefix.
    tower = {f"vision_model.{name}": tensor.detach().clone() for name, tensor in parts.tower.state_dict().items()}
    save_file(tower, vision_tower / "model.safetensors", metadata={"format": "pt"})
    image_processor().save_pretrained(vision_tower)


def save_llava_projector(folder: Path, parts: Parts, projector: nn.Sequential, losses: Sequence[float]) -> None:
    """A projector-only checkpoint as LLaVA's pre-training leaves it, with the losses so far in trainer_state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = {"_name_or_path": f"../{BASE_LLM}", "tune_mm_mlp_adapter": True}
    _write_json(folder / "config.json", _llava_config(parts, projector) | stage)
    torch.save(_projector_weights(projector), folder / "mm_projector.bin")
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    _write_json(folder / "trainer_state.json", {"global_step": len(losses), "log_history": history})


def load_llava_projector(folder: Path, connector: str, parts: Parts) -> nn.Sequential:
    """The projector of a checkpoint that `save_llava_projector` wrote."""
    weights = torch.load(folder / "mm_projector.bin", weights_only=True)
    projector = new_projector(connector, parts.tower.config.hidden_size, parts.language_model.config.hidden_size)
    projector.load_state_dict({name.removeprefix(_PROJECTOR): tensor for name, tensor in weights.items()})
    return projector


def save_llava_full(folder: Path, parts: Parts, projector: nn.Sequential) -> None:
    """A full checkpoint as LLaVA's second stage leaves it: language model, projector, tokenizer, the name of the tower.

    The folder lies beside `vision_tower`, or one level deeper.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(folder, parts.tokenizer_model)
    _write_json(folder / "config.json", _llava_config(parts, projector))
    weights = {name: tensor.detach().clone() for name, tensor in parts.language_model.state_dict().items()}
    save_file(weights | _projector_weights(projector), folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _llava_config(parts: Parts, projector: nn.Sequential) -> dict[str, object]:
    return parts.language_model.config.to_dict() | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": f"../{VISION_TOWER}",
        "mm_projector_type": f"mlp{(len(projector) + 1) // 2}x_gelu",
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


def _projector_weights(projector: nn.Sequential) -> dict[str, Tensor]:
    return {f"{_PROJECTOR}{name}": tensor.detach().clone() for name, tensor in projector.state_dict().items()}


def _save_tokenizer(folder: Path, tokenizer_model: bytes) -> None:
    (folder / TOKENIZER_NAME).write_bytes(tokenizer_model)
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


def _write_json(path: Path, data: dict[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
