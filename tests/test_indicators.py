"""The other indicators: closed forms, scikit-learn's kernels, the model's own loss, benchmarks with known answers."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from adapters.tiny_models import TINY_MODELS
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.indicators.in_context import in_context_accuracy, questions_from_tsv
from mir_plugin.indicators.indicators import DESCRIPTIONS, model_indicators
from mir_plugin.indicators.training_loss import training_loss
from mir_plugin.measurement.measure import measure
from mir_plugin.metric.discrepancies import kernel_distances, mutual_information
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, Prompt
from mir_plugin.results import MirConfig
from mir_plugin.samples.embedded import digit_questions, embedded_samples, micro_checkpoints
from mir_plugin.samples.sample_set import SampleSet

from golden_data import require_golden
from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow

AFTERWARDS = {"training_loss", "in_context_accuracy"}  # need more than the adapter and the samples


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def sklearn_mmd(kernel_vv: np.ndarray, kernel_tt: np.ndarray, kernel_vt: np.ndarray) -> float:
    """The textbook's U-statistic, as loops over pairs."""
    within = [
        np.mean([kernel[i, j] for i in range(len(kernel)) for j in range(len(kernel)) if i != j])
        for kernel in (kernel_vv, kernel_tt)
    ]
    return float(sum(within) - 2 * kernel_vt.mean())


def test_kernel_distances_are_those_of_scikit_learns_kernels() -> None:
    vision, text = normal(13, 4, seed=0, mean=0.5), normal(8, 4, seed=1)
    pooled = torch.cat([vision, text])
    # torch.median takes the lower middle of an even number of distances.
    bandwidth = np.sort(torch.pdist(pooled).numpy() ** 2)[(21 * 20 // 2 - 1) // 2]
    pairs = [(vision, vision), (text, text), (vision, text)]
    gaussian = [rbf_kernel(a.numpy(), b.numpy(), gamma=1 / bandwidth) for a, b in pairs]
    cubic = [polynomial_kernel(a.numpy(), b.numpy(), degree=3, gamma=1, coef0=1) for a, b in pairs]
    found = kernel_distances(vision, text)
    assert found.mmd == pytest.approx(sklearn_mmd(*gaussian), rel=1e-9)
    assert found.kid == pytest.approx(sklearn_mmd(*cubic), rel=1e-9)


def test_two_points_apart_have_their_closed_form() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0])
    found = kernel_distances(a.expand(6, 2), b.expand(6, 2))
    # 36 pairs across, 30 within: the median squared distance is the one across, so the kernel there is 1/e.
    assert found.mmd == pytest.approx(2 - 2 / math.e)
    assert found.kid == pytest.approx((5 + 1) ** 3 + (1 + 1) ** 3 - 2 * (-2 + 1) ** 3)


def test_kernel_distances_are_symmetric_and_do_not_turn_with_the_axes() -> None:
    vision, text = normal(40, 5, seed=0, mean=1.0), normal(30, 5, seed=1)
    rotation = torch.linalg.qr(normal(5, 5, seed=2)).Q
    expected = kernel_distances(vision, text)
    assert kernel_distances(text, vision) == pytest.approx(expected)
    assert kernel_distances(vision @ rotation, text @ rotation) == pytest.approx(expected)
    assert kernel_distances(7 * vision, 7 * text).mmd == pytest.approx(expected.mmd), "MMD has no unit"


def test_kernel_distances_of_equal_distributions_scatter_around_zero() -> None:
    found = [kernel_distances(normal(60, 3, seed=2 * s), normal(60, 3, seed=2 * s + 1)) for s in range(40)]
    mmds = np.array([one.mmd for one in found])
    # The estimate is unbiased: with 40 of them the mean lies within 4 standard errors of 0; a biased one is all above.
    assert abs(mmds.mean()) < 4 * mmds.std(ddof=1) / math.sqrt(40)
    assert (mmds < 0).any()


def test_kernel_distances_refuse_sets_they_cannot_tell_about() -> None:
    with pytest.raises(MirError, match="1 vision and 5 text tokens"):
        kernel_distances(normal(1, 2, seed=0), normal(5, 2, seed=1))
    with pytest.raises(MirError, match="has no bandwidth"):
        kernel_distances(torch.ones(9, 2), torch.ones(9, 2))


def test_mutual_information_of_gaussians_has_its_closed_form() -> None:
    one, noise = normal(4000, 1, seed=0), normal(4000, 1, seed=1)
    other = 0.8 * one + 0.6 * noise
    # r scatters by (1 − ρ²) / √n = 0.006, and dI/dρ = ρ / (1 − ρ²) = 2.2: four standard errors are 0.05.
    assert mutual_information(one, other, n_components=1) == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.05)


def test_mutual_information_of_unrelated_samples_is_zero_on_average() -> None:
    found = np.array([mutual_information(normal(60, 6, 2 * s), normal(60, 6, 2 * s + 1)) for s in range(30)])
    assert abs(found.mean()) < 4 * found.std(ddof=1) / math.sqrt(30)
    # Without the correction chance alone would give about 25 / (2 · 60) = 0.2.
    assert abs(found.mean()) < 0.1


def test_mutual_information_does_not_turn_with_the_axes_and_needs_enough_samples() -> None:
    vision = normal(50, 5, seed=0)
    text = vision + 0.5 * normal(50, 5, seed=1)
    rotation = torch.linalg.qr(normal(5, 5, seed=2)).Q
    expected = mutual_information(vision, text)
    assert mutual_information(vision @ rotation, 3 * text - 1) == pytest.approx(expected)
    assert expected > 1
    assert math.isfinite(mutual_information(vision, vision))
    with pytest.raises(MirError, match="19 samples; 20 are needed"):
        mutual_information(vision[:19], text[:19])


def test_variants_are_what_measure_gives_with_their_protocol() -> None:
    adapter = ToyAdapter()
    sample_set = SampleSet(tuple(toy_samples(5)))
    found = model_indicators(adapter, sample_set)
    assert set(found.values) | set(found.not_computed) == set(DESCRIPTIONS) - AFTERWARDS
    protocols = {
        "mir": MirConfig(),
        "mir_no_normalization": MirConfig(normalize=False),
        "mir_no_outliers": MirConfig(outliers="none"),
        "mir_remove_outliers": MirConfig(outliers="remove"),
        "mir_no_normalization_no_outliers": MirConfig(outliers="none", normalize=False),
    }
    measured = {
        name: measure(adapter, sample_set, config, checkpoint=name, with_uncertainty=False)
        for name, config in protocols.items()
    }
    assert measured["mir"].layers[0].n_text_outliers + measured["mir"].layers[0].n_vision_outliers > 0
    for name, result in measured.items():
        assert found.values[name] == pytest.approx(result.mir, rel=1e-12), name
    assert found.values["mir_published"] == pytest.approx(measured["mir"].mir_published, rel=1e-12)
    assert found.values["mir_published_upper"] == pytest.approx(measured["mir"].mir_published_upper, rel=1e-12)
    assert "the adapter toy " in found.not_computed["caption_loss"]
    assert found.not_computed["mutual_information_sum"].startswith("5 samples; 20 are needed")


def test_input_distances_are_those_of_the_embeddings() -> None:
    adapter = ToyAdapter()
    samples = toy_samples(4)
    batch = adapter.encode(samples)
    embeddings = batch.inputs["inputs_embeds"]
    vision, text = embeddings[batch.vision_mask].double(), embeddings[batch.text_mask].double()
    scale = 1 / text.norm(dim=1).mean()
    expected = kernel_distances(vision * scale, text * scale)
    one_by_one = model_indicators(adapter, SampleSet(tuple(samples)))
    assert one_by_one.values["mmd_input"] == pytest.approx(expected.mmd, rel=1e-6)
    assert one_by_one.values["kid_input"] == pytest.approx(expected.kid, rel=1e-6)
    together = model_indicators(adapter, SampleSet(tuple(samples)), batch_size=3)
    assert together.values == pytest.approx(one_by_one.values, rel=1e-4), "padding counts nowhere"


def test_the_caption_loss_is_the_models_own_over_the_text_tokens() -> None:
    tiny = TINY_MODELS["llava"]()
    adapter = from_loaded(tiny.model, tiny.processor)
    texts = ("short", "a text of several words", "another one")
    shown = embedded_samples(3).samples
    sample_set = SampleSet(tuple(dataclasses.replace(one, text=text) for one, text in zip(shown, texts, strict=True)))
    losses, counts = [], []
    for sample in sample_set.samples:
        batch = adapter.encode([sample])
        labels = batch.inputs["input_ids"].masked_fill(~batch.text_mask, -100)
        with torch.no_grad():
            losses.append(tiny.model(**batch.inputs, labels=labels).loss.item())
        counts.append(int(batch.text_mask.sum()))
    expected = np.average(losses, weights=counts)
    for batch_size in (1, 3):
        found = model_indicators(adapter, sample_set, batch_size=batch_size).values
        assert found["caption_loss"] == pytest.approx(expected, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_the_caption_loss_of_an_original_checkpoint_agrees_with_its_likelihoods() -> None:
    from mir_plugin.model_adapters import LoadOptions, load_adapter

    case = require_golden("llava/llava_full")
    adapter = load_adapter(case / "model", LoadOptions(vision_tower=case / "vision_tower", device="cpu"))
    text = (case / "samples" / "00.txt").read_text()[:60].strip()
    sample = dataclasses.replace(embedded_samples(1).samples[0], text=text)
    losses = adapter.text_token_losses(adapter.encode([sample]))
    [(log_likelihood, _)] = adapter.loglikelihood([Prompt("", (sample.open_image(),))], [text])
    # The text's own tokens are the last ones before the end token.
    n_text = len(adapter.tokenizer.encode(text))
    assert -float(losses[-n_text - 1 : -1].sum()) == pytest.approx(log_likelihood, rel=1e-4)


def state(folder: Path, *losses: tuple[int, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    history = [{"step": step, "loss": loss, "epoch": 1.0} for step, loss in losses]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 99, "train_loss": 7.0}]}))


def test_the_training_loss_is_the_mean_of_the_last_logged_ones(tmp_path: Path) -> None:
    state(tmp_path / "run", (1, 9.0), (2, 4.0), (3, 2.0))
    assert training_loss(tmp_path / "run") == 5.0
    assert training_loss(tmp_path / "run", n_last=2) == 3.0
    (tmp_path / "run" / "checkpoint-2").mkdir()
    assert training_loss(tmp_path / "run" / "checkpoint-2") == 6.5, "of the run's history, up to the checkpoint's step"
    state(tmp_path / "run" / "checkpoint-2", (1, 1.0), (2, 1.0))
    assert training_loss(tmp_path / "run" / "checkpoint-2") == 1.0, "its own history comes first"


def test_a_missing_or_damaged_trainer_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(MirError, match=r"no trainer_state\.json at .*checkpoint-7"):
        training_loss(tmp_path / "checkpoint-7")
    state(tmp_path, (5, 1.0))
    with pytest.raises(MirError, match="no loss up to step 2"):
        training_loss(tmp_path / "checkpoint-2")
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(MirError, match=r"trainer_state\.json"):
        training_loss(tmp_path)


class Knowing:
    """Scores options as told, and keeps the prompts."""

    def __init__(self, score: dict[str, float]) -> None:
        self.score, self.prompts = score, list[Prompt]()

    def generate(self, prompts: Sequence[Prompt], **_: object) -> list[str]:
        raise AssertionError("forced choice generates nothing")

    def loglikelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        self.prompts.append(prompts[0])
        return [(self.score[text], False) for text in continuations]


def test_the_likeliest_option_is_the_answer() -> None:
    questions = digit_questions("test", 12)
    for always in questions[0].options:
        scores = {digit: -1.0 - (digit != always) for digit in questions[0].options}
        expected = 100 * sum(one.answer == always for one in questions) / 12
        assert in_context_accuracy(Knowing(scores), questions) == pytest.approx(expected)


def test_prompts_hold_two_other_answered_questions_and_are_the_same_for_every_checkpoint() -> None:
    questions = [
        SimpleNamespace(
            question_id=str(n), image=f"image {n}", question=f"question {n}", options=("x", "y"), answer="x"
        )
        for n in range(5)
    ]
    asked = [Knowing({"x": 0.0, "y": -1.0}) for _ in range(3)]
    for generator, seed in zip(asked, (0, 0, 1), strict=True):
        assert in_context_accuracy(generator, questions, seed=seed) == 100
    assert asked[0].prompts == asked[1].prompts
    assert asked[0].prompts != asked[2].prompts
    for number, prompt in enumerate(asked[0].prompts):
        assert prompt.text.count(IMAGE_MARK) == len(prompt.images) == 3
        assert prompt.text.count("Answer: x") == 2
        assert prompt.text.endswith(f"{IMAGE_MARK}\nquestion {number}\nAnswer:")
        assert prompt.images[2] == f"image {number}"
        assert prompt.text.count(f"question {number}") == 1
        for example, image in zip(prompt.text.split(IMAGE_MARK)[1:], prompt.images, strict=True):
            assert example.split("\n")[1].removeprefix("question ") == image.removeprefix("image ")


def test_questions_that_cannot_be_asked_are_refused() -> None:
    questions = digit_questions("test", 3)
    with pytest.raises(MirError, match="2 questions; 3 are needed"):
        in_context_accuracy(Knowing({}), questions[:2])
    odd = SimpleNamespace(question_id="odd", image=None, question="?", options=("x", "y"), answer="z")
    with pytest.raises(MirError, match="question odd: the answer 'z' is none"):
        in_context_accuracy(Knowing({}), [odd, *questions])


def png(colour: str) -> str:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_benchmark_is_read_from_its_tsv_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.tsv"
    rows = [
        ["index", "image", "hint", "question", "A", "B", "C", "answer"],
        ["7", png("red"), "It is\nbright.", "Which colour?", "red", "blue", "", "A"],
        ["8", "7", "", "Which colour is it?", "green", "red", "blue", "B"],
    ]
    path.write_text("\n".join("\t".join(f'"{cell}"' for cell in row) for row in rows))
    limit = csv.field_size_limit()
    first, second = questions_from_tsv(path)
    assert csv.field_size_limit() == limit
    assert first.question == "It is\nbright.\nWhich colour?\nA. red\nB. blue"
    assert (first.options, first.answer) == (("A", "B"), "A")
    assert (second.options, second.answer) == (("A", "B", "C"), "B")
    assert second.image.getpixel((0, 0)) == (255, 0, 0), "an image cell may name the row that has the image"
    assert len(questions_from_tsv(path, 1)) == 1
    for column, cell, says in (
        (7, "C", "row 2: the answer is 'C'; expected one of A, B"),
        (5, "", "row 2: nothing in column B"),
        (1, "no image", "row 2: the image cannot be decoded"),
    ):
        broken = [cell if index == column else value for index, value in enumerate(rows[1])]
        path.write_text("\n".join("\t".join(f'"{cell}"' for cell in row) for row in (rows[0], broken)))
        with pytest.raises(MirError, match=says):
            questions_from_tsv(path)


def test_the_command_prints_every_indicator_of_a_trained_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mir_plugin.cli import main

    late = micro_checkpoints()[-1]
    command = [
        "mir",
        "indicators",
        str(late),
        "--embedded",
        "--n-samples",
        "3",
        "--n-questions",
        "4",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as exit_:
        main()
        sys.exit(0)
    assert exit_.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "indicators.json").read_text())
    assert set(printed["values"]) | set(printed["not_computed"]) == set(DESCRIPTIONS)
    assert set(printed["not_computed"]) == {"mutual_information_input", "mutual_information_sum", "training_loss"}
    assert 0 <= printed["values"]["in_context_accuracy"] <= 100
