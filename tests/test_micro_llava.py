from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from pytest import approx
from transformers import AutoModelForImageTextToText, AutoProcessor

from mir_plugin.embedded import digit_questions, first_word_is, micro_checkpoints

EXAMPLE = Path(__file__).parents[1] / "examples" / "micro_llava"


@pytest.fixture(scope="module")
def stages():
    """The training script's stages, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import stages as module
        import train

        train.make_repeatable()
        yield module
    finally:
        torch.use_deterministic_algorithms(False)
        sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def record():
    return json.loads((micro_checkpoints()[0].parent / "training.json").read_text())


def load(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval(), AutoProcessor.from_pretrained(
        folder
    )


def accuracy(folder: Path, n: int) -> float:
    """Share of right answers, generated as a user would."""
    model, processor = load(folder)
    questions = digit_questions("test", n)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": questions[0].question}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=[q.image for q in questions], text=[prompt] * n, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(tokens, skip_special_tokens=True)
    return sum(first_word_is(q.answer, answer) for q, answer in zip(questions, answers, strict=True)) / n


def test_the_early_checkpoint_guesses_and_the_late_one_reads_digits():
    early, late = (accuracy(folder, 100) for folder in (micro_checkpoints()[0], micro_checkpoints()[-1]))
    assert early < 0.25, "chance is 0.1"
    assert late > 0.6


def test_all_checkpoints_together_are_small():
    folder = micro_checkpoints()[0].parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2 * 1024**2


def test_checkpoints_of_the_run_differ_in_the_projector_only():
    early, late = (load(folder)[0].state_dict() for folder in (micro_checkpoints()[0], micro_checkpoints()[-1]))
    differing = {name for name in early if not torch.equal(early[name], late[name])}
    assert differing == {name for name in early if "multi_modal_projector" in name}


def test_weights_are_stored_in_half_and_computed_with_in_single_precision():
    model, _ = load(micro_checkpoints()[-1])
    assert model.dtype == torch.float32
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in model.state_dict().values())


def test_the_projector_stage_repeats_the_recorded_losses_and_the_early_checkpoint(stages, record):
    """From the committed frozen parts; a thousandth of tolerance is for other processors' rounding."""
    model, _ = load(micro_checkpoints()[0])
    n_pieces = stages.VOCABULARY
    config = model.config.text_config.to_dict() | {"vocab_size": n_pieces}
    language_model = stages.LlamaForCausalLM(stages.LlamaConfig(**config)).eval()
    language_model.model.load_state_dict(
        {
            name: tensor[:n_pieces] if name == "embed_tokens.weight" else tensor
            for name, tensor in model.model.language_model.state_dict().items()
        }
    )
    language_model.lm_head.load_state_dict({"weight": model.lm_head.weight[:n_pieces].detach()})
    tower = stages.CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tokenizer = stages.load_tokenizer(stages.train_tokenizer())

    early_step = int(micro_checkpoints()[0].name.removeprefix("step-"))
    run = stages.train_projector(
        tokenizer, language_model, tower, digit_questions("train"), stages.Recipe(**record["recipe"])
    )
    taken = list(itertools.islice(run, early_step + 1))
    losses, projector = [loss for _, loss, _ in taken[1:]], taken[-1][2]
    assert losses == approx(record["first_losses"]["projector"][:early_step], rel=1e-3)
    committed = model.model.multi_modal_projector
    assert projector[0].weight.detach().numpy() == approx(committed.linear_1.weight.detach().numpy(), abs=2e-3)
    assert projector[2].weight.detach().numpy() == approx(committed.linear_2.weight.detach().numpy(), abs=2e-3)


def test_the_fast_tokenizer_agrees_with_sentencepiece(stages):
    _, processor = load(micro_checkpoints()[-1])
    sentences = stages.load_tokenizer(stages.train_tokenizer())
    for text in [*stages.unseen_prose()[:20], "seven 1234, naïve\n  two  spaces", "USER: x ASSISTANT: nine"]:
        assert processor.tokenizer(text)["input_ids"] == sentences.encode(text, add_bos=True)
