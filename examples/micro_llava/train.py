"""Train the micro LLaVA that ships with mir-plugin, or a run of LLaVA-format checkpoints of the same recipe.

python examples/micro_llava/train.py --out DIR                                  # the committed checkpoints
python examples/micro_llava/train.py --out DIR --format llava --save-every 20   # projector-only, as LLaVA writes
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from checkpoints import save_huggingface
from corpus import unseen_prose
from stages import Recipe, train_language_model, train_projector, train_tokenizer, train_vision_tower

from examples.replication.micro_llava import (
    TOKENIZER_NAME,
    Parts,
    load_tokenizer,
    save_llava_parts,
    save_llava_projector,
)
from examples.replication.training import make_repeatable
from mir_plugin.samples.embedded import digit_questions

EARLY_STEP = 5
N_RECORDED_LOSSES = 5


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--format", choices=("huggingface", "llava"), default="huggingface")
    parser.add_argument("--save-every", type=int, help="save every N projector steps besides the first and the last")
    for field in dataclasses.fields(Recipe):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    recipe = Recipe(**{field.name: options[field.name] for field in dataclasses.fields(Recipe)})
    every = options["save_every"]
    steps = {EARLY_STEP, recipe.projector_steps}
    if every is not None:
        if every < 1:
            parser.error(f"--save-every is {every}; expected a positive number of steps")
        steps = {0, *range(every, recipe.projector_steps, every), recipe.projector_steps}
    train(options["out"], recipe, options["format"], steps)


def train(out: Path, recipe: Recipe, checkpoint_format: str, save_steps: set[int]) -> None:
    """Run all stages and write the checkpoints of the given projector steps, and training.json."""
    make_repeatable()
    started = time.perf_counter()
    losses: dict[str, list[float]] = defaultdict(list)
    tokenizer_model = train_tokenizer()
    tower = train_vision_tower(digit_questions("train"), recipe, losses["vision_tower"].append)
    language_model = train_language_model(load_tokenizer(tokenizer_model), recipe, losses["language_model"].append)
    align(out, recipe, checkpoint_format, save_steps, Parts(tokenizer_model, language_model, tower), losses)
    record = training_record(out, recipe, losses, round(time.perf_counter() - started))
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{len(save_steps)} checkpoints and training.json in {out}")


def align(
    out: Path,
    recipe: Recipe,
    checkpoint_format: str,
    save_steps: set[int],
    parts: Parts,
    losses: dict[str, list[float]],
) -> None:
    """The projector stage between frozen parts: its losses, and checkpoints of the given steps."""
    if checkpoint_format == "llava":
        save_llava_parts(out, parts)
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / TOKENIZER_NAME).write_bytes(parts.tokenizer_model)
    for step, loss, projector in train_projector(parts, digit_questions("train"), recipe):
        if step:
            losses["projector"].append(loss)
        if step not in save_steps:
            continue
        if checkpoint_format == "llava":
            save_llava_projector(out / f"checkpoint-{step}", parts, projector, losses["projector"])
        else:
            save_huggingface(out / f"step-{step}", parts, projector)


def training_record(out: Path, recipe: Recipe, losses: Mapping[str, list[float]], seconds: int) -> dict[str, object]:
    """What a later run is compared with: recipe, corpus, first and last losses, hashes of the weights, versions."""
    weights = [p for p in sorted(out.rglob("*")) if p.name in ("model.safetensors", "mm_projector.bin")]
    return {
        "recipe": dataclasses.asdict(recipe),
        "corpus_sha256": corpus_sha256(),
        "first_losses": {stage: values[:N_RECORDED_LOSSES] for stage, values in losses.items()},
        "mean_of_last_losses": {stage: sum(values[-20:]) / len(values[-20:]) for stage, values in losses.items()},
        "weights_sha256": {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in weights},
        "seconds": seconds,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "sentencepiece", "scikit-learn", "pillow")},
        },
    }


def corpus_sha256() -> str:
    """Identifies the prose, which follows the installed Python; other prose gives other weights."""
    return hashlib.sha256("\0".join(unseen_prose()).encode()).hexdigest()


if __name__ == "__main__":
    main()
