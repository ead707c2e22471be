"""Align the micro LLaVA with and without MoCa, over several seeds, and measure MIR and accuracy of each.

python examples/moca/compare.py --out examples/moca/RESULTS.md
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

from examples.replication.captions import before_answer, captions_of
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.moca.training import apply_moca, moca_parameters
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.samples.embedded import (
    DIGIT_QUESTION,
    digit_questions,
    embedded_samples,
    first_word_is,
    micro_checkpoints,
)
from mir_plugin.samples.sample_set import Sample, SampleSet

FROZEN_PARTS = micro_checkpoints()[0]  # its vision tower and language model; its projector is replaced
# Projected CLIP features are six to nine times as long as text embeddings when LLaVA's pre-training begins.
INITIAL_NORM_RATIO = 8.0
N_STEPS, BATCH, LEARNING_RATE = 150, 8, 1e-3  # the rate of LLaVA's first stage, for MoCa too, as in the released code
N_QUESTIONS = 200


@dataclass(frozen=True)
class Outcome:
    """What one training gave."""

    seed: int
    moca: bool
    loss: float
    mir_photographs: float
    mir_digits: float
    accuracy: float


class Captions(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Digits with a true caption each as the assistant's answer to nothing but the image."""

    def __init__(self, processor: Any) -> None:
        prompt = before_answer("<image>\n")
        digits = digit_questions("train")
        n_prompt = len(processor(images=digits[0].image, text=prompt)["input_ids"][0])
        self.rows = []
        for number, digit in enumerate(digits):
            captions = captions_of(digit)
            whole = f"{prompt} {captions[number % len(captions)]}{processor.tokenizer.eos_token}"
            encoded = processor(images=digit.image, text=whole, return_tensors="pt")
            ids = encoded["input_ids"][0]
            labels = ids.masked_fill(torch.arange(len(ids)) < n_prompt, -100)
            self.rows.append({"input_ids": ids, "labels": labels, "pixel_values": encoded["pixel_values"][0]})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Right-padded ids and labels, stacked pixels."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=-1)
    return {
        "input_ids": ids.clamp_min(0),
        "attention_mask": (ids >= 0).long(),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100),
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
    }


@torch.no_grad()
def fresh_projector(model: Any, pixels: Tensor) -> None:
    """Random weights, scaled so that vision tokens start as long, in text tokens' lengths, as LLaVA's do."""
    projector = model.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    vision = torch.cat(list(model.get_image_features(pixel_values=pixels).pooler_output))
    text = model.get_input_embeddings().weight
    factor = INITIAL_NORM_RATIO * text.norm(dim=1).mean() / vision.norm(dim=1).mean()
    for parameter in projector.linear_2.parameters():
        parameter.mul_(factor)


def train(seed: int, moca: bool, captions: Captions, processor: Any) -> tuple[Any, float]:
    """LLaVA's first stage: projector, and MoCa if asked for, learn from captions; all else is frozen.

    Returns the model and the mean loss of the last twenty steps.
    """
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration.from_pretrained(FROZEN_PARTS)
    fresh_projector(model, torch.stack([row["pixel_values"] for row in captions.rows[:64]]))
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if moca:
        apply_moca(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=N_STEPS, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine", warmup_steps=N_STEPS * 3 // 100, logging_steps=20, save_strategy="no",
            report_to=[], seed=seed, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=captions, data_collator=collate, processing_class=processor)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model.eval(), float(losses[-1])


def evaluate(seed: int, moca: bool, captions: Captions, processor: Any) -> Outcome:
    """Train once, then measure on unseen photographs with prose, on held-out digits with captions, and in answers."""
    model, loss = train(seed, moca, captions, processor)
    adapter = from_loaded(model, processor)
    held_out = digit_questions("test", N_QUESTIONS)
    digits = SampleSet(tuple(Sample(one.question_id, one.image, captions_of(one)[0]) for one in held_out))
    prompts = [Prompt(DIGIT_QUESTION, (one.image,)) for one in held_out]
    answers = [
        answer
        for start in range(0, N_QUESTIONS, BATCH)
        for answer in adapter.generate(prompts[start : start + BATCH], max_new_tokens=4)
    ]
    right = [first_word_is(one.answer, answer) for one, answer in zip(held_out, answers, strict=True)]
    if moca:
        scales = torch.stack(moca_parameters(model)[::2]).detach()
        print(f"scales: mean {scales.mean():.3f}, from {scales.min():.3f} to {scales.max():.3f}", file=sys.stderr)
    return Outcome(
        seed,
        moca,
        loss,
        measure(adapter, embedded_samples(), checkpoint="", batch_size=10, with_uncertainty=False).mir,
        measure(adapter, digits, checkpoint="", batch_size=10, with_uncertainty=False).mir,
        100 * mean(right),
    )


def report(outcomes: list[Outcome], seconds: float) -> str:
    """All runs as they came out, then their means and, of the paired differences, mean and standard deviation."""
    weights = hashlib.sha256((FROZEN_PARTS / "model.safetensors").read_bytes()).hexdigest()
    lines = [
        f"Frozen parts: micro LLaVA {FROZEN_PARTS.name}, weights {weights[:12]}; {N_STEPS} steps of {BATCH}; "
        f"{seconds / 60:.0f} minutes in all.",
        "",
        "| seed | MoCa | caption loss | MIR, photographs and prose | MIR, held-out digits and captions | accuracy % |",
        "|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        lines.append(
            f"| {one.seed} | {'yes' if one.moca else 'no'} | {one.loss:.3f} | {one.mir_photographs:.3f} "
            f"| {one.mir_digits:.3f} | {one.accuracy:.1f} |"
        )
    names = ("loss", "mir_photographs", "mir_digits", "accuracy")
    plain, calibrated = ([one for one in outcomes if one.moca is moca] for moca in (False, True))
    for label, group in (("without", plain), ("with", calibrated)):
        lines.append(
            f"| mean | {label} | " + " | ".join(f"{mean(getattr(r, n) for r in group):.3f}" for n in names) + " |"
        )
    paired = {n: [getattr(b, n) - getattr(a, n) for a, b in zip(plain, calibrated, strict=True)] for n in names}
    lines.append("| with - without | mean ± sd | " + " | ".join(_spread(paired[n]) for n in names) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{mean(values):+.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):+.3f}"


def main() -> None:
    """Parse the command line, train all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the table; printed in any case")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, one thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    processor = AutoProcessor.from_pretrained(FROZEN_PARTS)
    captions = Captions(processor)
    runs = [(seed, moca, captions, processor) for seed in options.seeds for moca in (False, True)]
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        outcomes = pool.starmap(evaluate, runs, chunksize=1)
    table = report(outcomes, time.perf_counter() - started)
    print(table)
    if options.out:
        command = f"python examples/moca/compare.py --processes {options.processes} --out {options.out}"
        options.out.write_text(f"```\n{command}\n```\n\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
