"""A tiny LLaVA with dropout, captions to train it on, and its Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from adapters.tiny_models import TINY_MODELS, TinyModel
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from mir_plugin.samples.embedded import embedded_samples

N_STEPS = 2


class Captions(Dataset[dict[str, torch.Tensor]]):
    """Captions of one length, so that the default collator can stack them."""

    def __init__(self, processor: Any, image: str = "<image>") -> None:
        texts = [f"USER: {image}\nASSISTANT: caption {n}</s>" for n in range(8)]
        images = [[sample.open_image()] for sample in embedded_samples(8).samples]
        self.rows = dict(processor(images=images, text=texts, return_tensors="pt"))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: value[index] for name, value in self.rows.items()}
        return row | {"labels": row["input_ids"]}


def tiny_llava() -> TinyModel:
    """With dropout, so that the losses tell whether random numbers were used up in between."""
    tiny = TINY_MODELS["llava"]()
    for module in tiny.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    return tiny


def with_lora(tiny: TinyModel) -> TinyModel:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.2, target_modules=r".*language_model.*(q_proj|v_proj)")
    return TinyModel(get_peft_model(tiny.model, config), tiny.processor)


def trainer_of(tiny: TinyModel, folder: Path, **arguments: Any) -> Trainer:
    settings = {
        "max_steps": N_STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **arguments,
    }
    return Trainer(
        tiny.model,
        TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=Captions(tiny.processor),
        processing_class=tiny.processor,
    )
