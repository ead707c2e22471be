"""examples/pretrain on tiny random parts: checkpoints are measured, resumed from and tuned."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapters.tiny_models import CLIP, TEXT, tiny_tokenizer
from PIL import Image

from examples.pretrain import pretrain, study, tune
from examples.pretrain.drawings import process_results
from examples.pretrain.parts import questions
from mir_plugin import LoadOptions, MirResult, from_folders, load_adapter, measure
from mir_plugin.samples.embedded import embedded_samples

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = 4


def clip_tower(folder: Path) -> None:
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP, image_size=32, patch_size=8)).save_pretrained(
        folder
    )


def convolutional_tower(folder: Path) -> None:
    transformers.TimmWrapperModel(
        transformers.TimmWrapperConfig(architecture="test_efficientnet", do_pooling=False)
    ).save_pretrained(folder)


@pytest.fixture(params=[clip_tower, convolutional_tower], ids=["transformer", "convolutional"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with ``llm``, ``tower``, images and captions."""
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(tmp_path / "llm")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "llm")
    request.param(tmp_path / "tower")
    square = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=square, do_center_crop=False).save_pretrained(tmp_path / "tower")
    rows = []
    (tmp_path / "images").mkdir()
    (tmp_path / "texts").mkdir()
    for place, sample in enumerate(embedded_samples(8).samples):
        sample.open_image().convert("RGB").resize((32, 32), Image.Resampling.BILINEAR).save(
            tmp_path / f"images/{place}.png"
        )
        (tmp_path / f"texts/{place}.txt").write_text(sample.text[:200], encoding="utf-8")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"Picture {place * place}."}]
        rows.append({"id": str(place), "image": f"{place}.png", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def pretrained(parts: Path, out: str, *more: str) -> Any:
    places = {name: parts / name for name in ("llm", "tower", "images")}
    places |= {"data": parts / "captions.json", "held-out": parts / "captions.json", "out": parts / out}
    places |= {"mir-images": parts / "images", "mir-texts": parts / "texts"}
    paths = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    settings = f"--steps {STEPS} --batch-size 2 --lr 0.01 --mir-samples 4 --save-at 2,{STEPS} --dtype float32".split()
    return pretrain.main([*paths, *settings, *more])


def mir_of(folder: Path, parts: Path) -> float:
    """As `mir run` measures it. The images need no resizing, which the Trainer's processor does in another way."""
    samples = from_folders(parts / "images", parts / "texts", 4)
    return measure(load_adapter(folder, LoadOptions(device="cpu")), samples, checkpoint=str(folder)).mir


@pytest.mark.slow
@pytest.mark.full
def test_checkpoints_are_what_was_trained_and_are_read_natively(parts: Path) -> None:
    trainer = pretrained(parts, "run")
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 2 and losses[1] < losses[0]
    live = MirResult.load(parts / f"run/mir/checkpoint-{STEPS}")
    saved = parts / f"run/checkpoint-{STEPS}"
    assert mir_of(saved, parts) == pytest.approx(live.mir, rel=1e-6)  # float32 on both sides
    assert abs(mir_of(parts / "run/checkpoint-0", parts) - live.mir) > 1e-3
    # Frozen weights are on disk once.
    assert (saved / pretrain.FROZEN).is_symlink()
    assert (saved / pretrain.PROJECTOR).stat().st_size < (parts / "run" / pretrain.FROZEN).stat().st_size


@pytest.mark.slow
@pytest.mark.full
def test_a_killed_training_goes_on_and_remembered_features_change_nothing(parts: Path) -> None:
    whole = pretrained(parts, "whole")

    class Killed(Exception):
        pass

    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        add = transformers.Trainer.add_callback
        patch.setattr(
            transformers.Trainer, "add_callback", lambda self, callback: (add(self, callback), add(self, Kill()))
        )
        with pytest.raises(Killed):
            pretrained(parts, "killed", "--features", str(parts / "features.pt"))
    resumed = pretrained(parts, "killed", "--features", str(parts / "features.pt"))
    weights = (pretrain.projector_of(one.model).state_dict() for one in (whole, resumed))
    for one, other in zip(*(list(of_run.values()) for of_run in weights), strict=True):
        # Features are kept in half precision.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    assert resumed.state.global_step == STEPS


@pytest.mark.slow
@pytest.mark.full
def test_a_checkpoint_is_tuned_and_still_read(parts: Path) -> None:
    pretrained(parts, "run")
    options = ["--data", str(parts / "captions.json"), "--images", str(parts / "images"), "--out", str(parts / "tuned")]
    tune.main([str(parts / f"run/checkpoint-{STEPS}"), *options, "--batch-size", "4", "--lr", "0.01"])
    before = MirResult.load(parts / f"run/mir/checkpoint-{STEPS}").mir
    assert abs(mir_of(parts / "tuned", parts) - before) > 1e-3
    untuned, tuned = (tower_of(parts / name) for name in (f"run/checkpoint-{STEPS}", "tuned"))
    assert untuned.keys() == tuned.keys()
    for name, value in untuned.items():  # statistics of batch norm, too; the tuned one is saved in bfloat16
        assert torch.equal(value.to(tuned[name].dtype), tuned[name]), name


def tower_of(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    found: dict[str, torch.Tensor] = model.model.vision_tower.state_dict()
    return found


def test_steps_are_spaced_by_their_logarithm() -> None:
    steps = pretrain.log_spaced(2180)
    assert steps[0] == 4 and steps[-1] == 2180
    assert all(1.2 < later / earlier < 1.8 for earlier, later in itertools.pairwise(steps[1:]))


def test_intervals_of_correlations_are_over_runs() -> None:
    """Within each run the indicator orders the scores, between runs it does not; the interval shows both."""
    rows: list[study.Row] = [
        {"run": str(run), "acc": -run + 0.1 * place, "mir": run + 0.1 * place, "late loss": run - 0.1 * place}
        for run in range(3)
        for place in range(4)
    ]
    rho, low, high = study.rho_by_runs(rows, "mir")
    assert low < -0.5 < 0.9 < high  # one run drawn three times is in order
    assert low <= rho < 0
    assert study.rho_by_runs(rows, "late loss") == pytest.approx((-1, -1, -1))
    assert study.rho_by_runs(rows[1:], "mir") != (rho, low, high)
    assert "| mir |" in study.scores([{**row, "name": "a", **dict.fromkeys(study.KINDS[1:], 0.5)} for row in rows])


def test_every_question_offers_its_answer_once_and_each_drawing_is_asked_about_once() -> None:
    rows = [{"name": f"thing {i}", "group": f"group {i % 5}", "image": f"{i}.png"} for i in range(30)]
    asked = questions(rows, 10, rows)
    assert {one["kind"] for one in asked} == {"which_name", "which_group", "yes_or_no"}
    assert all(one["options"].count(one["answer"]) == 1 for one in asked)
    assert len({one["image"] for one in asked}) == 30
    for one in asked:
        row = rows[int(one["image"].removesuffix(".png"))]
        truth = {"which_name": row["name"], "which_group": row["group"]}
        is_this = "yes" if one["question"] == f"Is this {row['name']}?" else "no"
        assert one["answer"] == truth.get(one["kind"], is_this)


@pytest.mark.parametrize("told", [tuple, str])  # lmms-eval 0.7.3 makes text of a pair
def test_the_likeliest_option_is_the_response(told: Any) -> None:
    doc = {"kind": "which_name", "options": ["cat", "dog", "owl"], "answer": "owl"}
    losses = [told((3.0, False)), told((2.5, True)), told((0.5, False))]
    assert process_results(doc, losses) == {"acc": 1.0, "which_name": 1.0}
    assert process_results({**doc, "answer": "cat"}, losses) == {"acc": 0.0, "which_name": 0.0}
