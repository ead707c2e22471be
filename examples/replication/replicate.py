"""Does MIR before fine-tuning order checkpoints as their scores after fine-tuning do? On the micro LLaVA.

python examples/replication/replicate.py --out DIR                # all seeds; continues where it was stopped
python examples/replication/replicate.py --out DIR --seeds 1      # one seed, for example in a second process
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "micro_llava"))  # the stages of the micro LLaVA's own training

from checkpoints import Parts, load_parts, save_llava_full, save_llava_parts, save_llava_projector
from corpus import captions_of
from findings import Outcome, write_results
from finetune import finetune
from recipes import LAST_STEP, PRE_TRAININGS, FineTuning, PreTraining
from stages import Recipe, load_tokenizer, train_projector, vision_features
from train import make_repeatable

from mir_plugin.embedded import DigitQuestion, digit_questions, embedded_samples, first_word_is, micro_checkpoints
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.generation import Prompt
from mir_plugin.model_adapters.llava_adapter import LlavaAdapter
from mir_plugin.run import measure
from mir_plugin.samples import Sample, SampleSet

N_SAMPLES = 50
N_QUESTIONS = 200
N_CAPTIONS = 100
MAX_ANSWER_TOKENS = 5  # "zero" takes four
N_LOSSES = 10


def main() -> None:
    """Parse the command line, run what is not done yet, write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--parts", type=Path, default=micro_checkpoints()[0], help="micro LLaVA whose tower and language model are used"
    )
    options = parser.parse_args()
    make_repeatable()
    parts = load_parts(options.parts)
    if not (options.out / "vision_tower" / "model.safetensors").is_file():
        save_llava_parts(options.out, parts)
    for seed in options.seeds:
        for pre_training in PRE_TRAININGS:
            run(options.out, parts, pre_training, seed)
    outcomes = [Outcome(**json.loads(path.read_text())) for path in sorted(options.out.rglob("outcome.json"))]
    write_results(options.out, outcomes)
    print(f"{len(outcomes)} checkpoints; {options.out / 'RESULTS.md'}")


def run(out: Path, parts: Parts, pre_training: PreTraining, seed: int) -> None:
    """Pre-train the projector once; measure and fine-tune each saved checkpoint."""
    name = f"{pre_training.name.replace(' ', '-')}-seed{seed}"
    folders = {step: out / f"{name}-checkpoint-{step}" for step in pre_training.saved_steps}
    if all((folder / "outcome.json").is_file() for folder in folders.values()):
        return
    recipe = Recipe(seed=seed, projector_steps=LAST_STEP, projector_rate=pre_training.rate)
    digits = digit_questions("train")
    features = vision_features(parts.tower, digits)
    losses: list[float] = []
    stage = train_projector(
        load_tokenizer(parts.tokenizer_model),
        parts.language_model,
        parts.tower,
        digits[: pre_training.n_digits],
        recipe,
    )
    for step, loss, projector in stage:
        losses.append(loss)
        folder = folders.get(step)
        if folder is None or (folder / "outcome.json").is_file():
            continue
        started = time.perf_counter()
        save_llava_projector(folder, parts, projector, losses[1:])
        tuned = finetune(parts, projector, features, digits, FineTuning(seed=seed))
        tuned_folder = out / f"{folder.name}-tuned"
        save_llava_full(tuned_folder, *tuned)
        outcome = Outcome(
            seed=seed,
            run=pre_training.name,
            step=step,
            training_loss=sum(losses[1:][-N_LOSSES:]) / len(losses[1:][-N_LOSSES:]),
            **before_tuning(folder),
            score=accuracy(load_answering(tuned_folder)),
            seconds=time.perf_counter() - started,
        )
        (folder / "outcome.json").write_text(json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")
        print(outcome, flush=True)


def before_tuning(checkpoint: Path) -> dict[str, float]:
    """What can be known before fine-tuning."""
    adapter = load_answering(checkpoint)
    photographs, digits = sample_sets()
    by_photographs = measure(adapter, photographs, checkpoint=checkpoint.name, with_uncertainty=False)
    by_digits = measure(adapter, digits, checkpoint=checkpoint.name, with_uncertainty=False)
    return {
        "mir_digits": by_digits.mir,
        "mir_digits_no_trace_term": by_digits.mir_published_upper,
        "mir_photographs": by_photographs.mir,
        "norm_ratio": by_digits.layers[0].norm_ratio,
        "caption_loss": caption_loss(adapter, digit_questions("test", N_CAPTIONS)),
        "score_before": accuracy(adapter),
    }


def load_answering(checkpoint: Path) -> LlavaAdapter:
    """The checkpoint as `mir run` loads it, which can also answer prompts."""
    adapter = load_adapter(checkpoint, LoadOptions(device="cpu", dtype="float32"))
    assert isinstance(adapter, LlavaAdapter)
    return adapter


@functools.cache
def sample_sets() -> tuple[SampleSet, SampleSet]:
    """The embedded samples, and the same texts with pictures of digits that were not trained on."""
    photographs = embedded_samples(N_SAMPLES)
    pairs = zip(digit_questions("test", N_SAMPLES), photographs.samples, strict=True)
    return photographs, SampleSet(tuple(Sample(q.question_id, q.image, sample.text) for q, sample in pairs))


def caption_loss(adapter: LlavaAdapter, digits: Sequence[DigitQuestion]) -> float:
    """Mean negative log likelihood of a true caption of pictures that were not trained on, in nats a caption."""
    prompts = [Prompt("", (digit.image,)) for digit in digits]
    likelihoods = adapter.loglikelihood(prompts, [captions_of(digit)[0] for digit in digits])
    return -sum(value for value, _ in likelihoods) / len(digits)


def accuracy(adapter: LlavaAdapter) -> float:
    """Share of right answers to the benchmark's questions."""
    questions = digit_questions("test", N_QUESTIONS)
    answers = adapter.generate([Prompt(q.question, (q.image,)) for q in questions], max_new_tokens=MAX_ANSWER_TOKENS)
    return sum(first_word_is(q.answer, text) for q, text in zip(questions, answers, strict=True)) / N_QUESTIONS


if __name__ == "__main__":
    main()
