"""Tune language model and projector on a few questions: LLaVA's second stage, short and the same for every checkpoint.

    python examples/pretrain/tune.py runs/pretrain/checkpoint-640 --data questions.json --images images --out tuned/640

Questions are in LLaVA's format, asked through the processor's chat template; the loss is of the answers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, set_seed

IMAGE, IGNORED = "<image>", -100


class Questions(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of LLaVA's JSON as conversations; only the answer is a target."""

    def __init__(self, path: Path, images: Path, processor: Any) -> None:
        self.rows = json.loads(path.read_text(encoding="utf-8"))
        self.images, self.processor = images, processor
        self.end = processor.tokenizer.eos_token_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        question, answer = (turn["value"] for turn in row["conversations"][:2])
        content = [{"type": "image"}, {"type": "text", "text": question.replace(IMAGE, "").strip()}]
        message = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        image = Image.open(self.images / row["image"]).convert("RGB")
        item = self.processor(images=image, text=prompt, return_tensors="pt", add_special_tokens=False)
        before = item["input_ids"][0].tolist()
        after = [*self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end]
        labels = [IGNORED] * len(before) + after
        return {"input_ids": [*before, *after], "labels": labels, "pixel_values": item["pixel_values"][0]}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded at the end."""
        longest = max(len(item["labels"]) for item in items)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([item[name] + [value] * (longest - len(item[name])) for item in items])

        pixels = torch.stack([item["pixel_values"] for item in items])
        return {"input_ids": padded("input_ids", self.end), "labels": padded("labels", IGNORED), "pixel_values": pixels}


class TuningTrainer(Trainer):
    """The vision tower stays as it is, batch norm included; logits of answers only."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy of answers."""
        # Here, because the Trainer puts the whole model into training mode at each step.
        cast("Any", self.model).model.vision_tower.eval()
        targets = inputs.pop("labels")[:, 1:]
        keep = (targets != IGNORED).any(dim=0).nonzero().flatten()
        logits, wanted = model(**inputs, use_cache=False, logits_to_keep=keep).logits, targets[:, keep]
        loss = cross_entropy(logits[wanted != IGNORED].float(), wanted[wanted != IGNORED])
        return (loss, {"loss": loss}) if return_outputs else loss


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a pre-trained checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="questions in LLaVA's JSON format")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4, help="LLaVA's for 7B models is 2e-5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", default="sdpa", help="eager is faster on some CPUs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """One pass over the questions."""
    options = parsed(arguments)
    set_seed(options.seed)
    # In float32, because bfloat16 has no room for small updates; it computes in bfloat16.
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(options.checkpoint, dtype=torch.float32)
    model.set_attn_implementation(options.attention)
    processor = transformers.AutoProcessor.from_pretrained(options.checkpoint)
    model.model.vision_tower.requires_grad_(False)
    questions = Questions(options.data, options.images, processor)
    n_steps = math.ceil(len(questions) / options.batch_size)
    trainer = TuningTrainer(
        model,
        TrainingArguments(
            output_dir=str(options.out),
            num_train_epochs=1,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.03 * n_steps),
            seed=options.seed,
            bf16=True,
            logging_steps=10,
            save_strategy="no",
            remove_unused_columns=False,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        data_collator=questions.collate,
        train_dataset=cast("Any", questions),
    )
    trainer.train()
    model.to(torch.bfloat16).save_pretrained(options.out)
    processor.save_pretrained(options.out)
    # From this `mir report` knows whose MIR belongs to the scores of this folder.
    (options.out / "README.md").write_text(f"---\nbase_model: {options.checkpoint}\n---\n", encoding="utf-8")


if __name__ == "__main__":
    main()
