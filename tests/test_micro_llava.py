from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from pytest import approx
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.replication.micro_llava import (
    load_parts,
    load_tokenizer,
    save_llava_full,
    save_llava_parts,
    save_llava_projector,
)
from examples.replication.training import make_repeatable
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import load_adapter
from mir_plugin.samples.embedded import (
    digit_questions,
    embedded_samples,
    first_word_is,
    micro_checkpoints,
)

from tolerances import SAME_FEATURES

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "micro_llava"
EARLY, LATE = micro_checkpoints()[0], micro_checkpoints()[-1]


@pytest.fixture(scope="module")
def scripts():
    """The training scripts, imported as they import each other; their names are free again afterwards."""
    sys.path.insert(0, str(EXAMPLE))
    n_threads = torch.get_num_threads()
    try:
        import train

        make_repeatable()
        yield train
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(n_threads)
        sys.path.remove(str(EXAMPLE))
        for path in EXAMPLE.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def parts():
    return load_parts(LATE)


@pytest.fixture(scope="module")
def record():
    return json.loads((EARLY.parent / "training.json").read_text())


@pytest.fixture(scope="module")
def models():
    return {
        folder: AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval() for folder in (EARLY, LATE)
    }


def accuracy(model, folder: Path, n: int) -> float:
    """Share of right answers, generated as a user would."""
    processor = AutoProcessor.from_pretrained(folder)
    questions = digit_questions("test", n)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": questions[0].question}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=[q.image for q in questions], text=[prompt] * n, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(tokens, skip_special_tokens=True)
    return sum(first_word_is(q.answer, answer) for q, answer in zip(questions, answers, strict=True)) / n


def test_the_early_checkpoint_guesses_and_the_late_one_reads_digits(models):
    assert accuracy(models[EARLY], EARLY, 60) < 0.3, "chance is 0.1"
    assert accuracy(models[LATE], LATE, 60) > 0.6


def test_all_checkpoints_together_are_small():
    assert sum(path.stat().st_size for path in EARLY.parent.rglob("*") if path.is_file()) < 2 * 1024**2


def test_the_committed_weights_are_those_that_the_recorded_run_wrote(record):
    hashes = {
        f"{p.name}/model.safetensors": hashlib.sha256((p / "model.safetensors").read_bytes()) for p in (EARLY, LATE)
    }
    assert {name: digest.hexdigest() for name, digest in hashes.items()} == record["weights_sha256"]


def test_checkpoints_of_the_run_differ_in_the_projector_only(models):
    early, late = models[EARLY].state_dict(), models[LATE].state_dict()
    differing = {name for name in early if not torch.equal(early[name], late[name])}
    assert differing == {name for name in early if "multi_modal_projector" in name}


def test_weights_are_stored_in_half_and_computed_with_in_single_precision(models):
    assert models[LATE].dtype == torch.float32
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in models[LATE].state_dict().values())


def test_the_projector_stage_repeats_the_recorded_losses(scripts, parts, record):
    """From the committed frozen parts; a thousandth of tolerance is for other processors' rounding."""
    import stages

    stage = stages.train_projector(parts, digit_questions("train"), stages.Recipe(**record["recipe"]))
    losses = [loss for _, loss, _ in itertools.islice(stage, 1, 3)]
    assert losses == approx(record["first_losses"]["projector"][:2], rel=1e-3)


def test_the_fast_tokenizer_agrees_with_sentencepiece(scripts, parts):
    import corpus

    fast, sentences = AutoProcessor.from_pretrained(LATE).tokenizer, load_tokenizer(parts.tokenizer_model)
    for text in [*corpus.unseen_prose()[:20], "seven 1234, naïve\n  two  spaces", "USER: x ASSISTANT: nine"]:
        assert fast(text)["input_ids"] == sentences.encode(text, add_bos=True)


def test_no_sentence_of_the_embedded_samples_was_read_in_training(scripts):
    import corpus

    read = " ".join(corpus.unseen_prose())
    texts = [*corpus.held_out_prose(), *(sample.text for sample in embedded_samples().samples)]
    assert len(texts) == 200
    assert len(read) > 100_000
    assert not [text for text in texts if text[:80] in read or text[-80:] in read]


def test_the_same_weights_in_original_formats_have_the_same_mir(scripts, parts, models, tmp_path):
    """Projector-only and full LLaVA folders against the transformers one: two loaders, one model.

    The original code tokenizes what follows the image as a piece of its own, which adds one word-start token to a
    prompt of some 180: pixels and weights are equal, MIR moves by 3e-4.
    """
    trained = models[LATE].model.multi_modal_projector
    projector = torch.nn.Sequential(trained.linear_1, torch.nn.GELU(), trained.linear_2)
    save_llava_parts(tmp_path, parts)
    save_llava_projector(tmp_path / "checkpoint-7", parts, projector, [2.0, 1.0])
    save_llava_full(tmp_path / "full", parts, projector)
    samples = embedded_samples(5)
    mirs = []
    for folder in (LATE, tmp_path / "checkpoint-7", tmp_path / "full"):
        adapter = load_adapter(folder)
        mirs.append((adapter.family, measure(adapter, samples, checkpoint=folder.name, with_uncertainty=False).mir))
    assert [family for family, _ in mirs] == ["huggingface", "llava-1.5", "llava-1.5"]
    assert mirs[1][1] == approx(mirs[2][1], rel=SAME_FEATURES)
    assert mirs[1][1] == approx(mirs[0][1], abs=1e-3)


def test_every_stage_runs_and_leaves_what_a_sweep_reads(scripts, tmp_path, monkeypatch):
    import stages

    monkeypatch.setattr(scripts, "digit_questions", lambda split: digit_questions(split, 8))
    recipe = stages.Recipe(language_steps=1, vision_steps=1, vision_batch=2, projector_steps=2, projector_batch=2)
    scripts.train(tmp_path, recipe, "llava", {0, 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base_llm", "checkpoint-0", "checkpoint-2", "training.json", "vision_tower",
    ]  # fmt: skip
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    record = json.loads((tmp_path / "training.json").read_text())
    assert [entry["loss"] for entry in state["log_history"]] == record["first_losses"]["projector"]
    assert load_adapter(tmp_path / "checkpoint-2").facts["kind"] == "projector"
