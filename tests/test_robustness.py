"""Robustness studies: what is measured, that choices of one run are right, and what the verdicts say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.robustness import contents
from mir_plugin.robustness.choices import ChoiceDistances, chosen_features
from mir_plugin.robustness.contents import Images, Pairs, Texts
from mir_plugin.robustness.results import ChoiceResult, ConditionResult, Robustness
from mir_plugin.robustness.studies import (
    Choice,
    Kinds,
    choices,
    plan,
)
from mir_plugin.robustness.verdict import verdicts
from mir_plugin.samples.embedded import embedded_samples, micro_checkpoints
from mir_plugin.samples.sample_set import Sample, SampleSet

from golden_data import require_golden
from tolerances import SAME_FEATURES
from toy import ToyAdapter, toy_samples

MICRO = micro_checkpoints()


def pixels(image: object) -> bytes:
    return Sample("image", image, "text").open_image().tobytes()  # type: ignore[arg-type]


def toy_set(indices: tuple[int, ...] = tuple(range(7))) -> SampleSet:
    samples = toy_samples(7)
    return SampleSet(tuple(samples[index] for index in indices))


@pytest.mark.parametrize("outliers", ["replace", "remove", "none"])
def test_choices_from_one_run_equal_measurements_of_their_own(outliers):
    adapter, config = ToyAdapter(), MirConfig(outliers=outliers, n_sigma=1.5)
    chosen = [Choice(0, (0,)), Choice(0, (1, 4)), Choice(1, (5, 2, 6)), Choice(0, tuple(range(7)))]
    watch = ChoiceDistances(chosen, config)
    whole = measure(adapter, toy_set(), config, checkpoint="toy", with_uncertainty=False, batch_size=1, watch=watch)
    found = watch.results("toy")
    alone = [
        measure(adapter, toy_set(one.indices), config, checkpoint="toy", with_uncertainty=False, batch_size=1)
        for one in chosen
    ]
    # The same float32 features; only the order of summing rows may differ.
    assert [one.mir for one in found] == pytest.approx([one.mir for one in alone], abs=1e-6)
    assert found[-1].mir == pytest.approx(whole.mir, rel=SAME_FEATURES)
    assert any(layer.n_vision_outliers for layer in whole.layers) or outliers == "none"
    assert [(one.n_samples, one.seed) for one in found] == [(1, 0), (2, 0), (3, 1), (7, 0)]


def test_chosen_features_keep_samples_together():
    import torch

    from mir_plugin.types import TokenFeatures

    rows = torch.arange(6.0)[:, None]
    features = TokenFeatures(3, rows, rows + 10, (1, 3, 2), (2, 1, 3))
    chosen = chosen_features(features, (2, 0))
    assert chosen.vision[:, 0].tolist() == [4, 5, 0]
    assert chosen.text[:, 0].tolist() == [13, 14, 15, 10, 11]
    assert (chosen.layer, chosen.vision_counts, chosen.text_counts) == (3, (2, 1), (3, 2))


def few_kinds(**changes) -> Kinds:
    photos, notes = Images("photos", (b"a", b"b", b"c")), Texts("notes", ("one", "two", "three"))
    kinds = Kinds(images=(photos,), texts=(notes,), pairs=None, seen=None, unseen=None)
    return dataclasses.replace(kinds, **changes)


def test_studies_without_their_data_are_left_out_and_say_what_they_need():
    planned = plan(few_kinds(), ["content", "template", "relevance", "exposure", "number"], 3, repeats=2)
    assert list(planned.studies) == ["template", "number"]
    assert "--pairs" in planned.skipped["relevance"]
    assert "--seen" in planned.skipped["exposure"]
    assert "--images" in planned.skipped["content"]
    assert [one.name for one in planned.conditions] == ["photos + notes", "photos + notes, no template"]
    with pytest.raises(MirError, match="no study can run"):
        plan(few_kinds(), ["exposure"], 3)
    with pytest.raises(MirError, match="unknown study 'colour'; expected content"):
        plan(few_kinds(), ["colour"], 3)
    with pytest.raises(MirError, match="4 samples were asked for, but photos has 3"):
        plan(few_kinds(), ["template"], 4)


def test_without_a_number_below_all_samples_there_is_no_study_of_the_number():
    planned = plan(few_kinds(), ["template", "number"], 3, sizes=[3, 100])
    assert (list(planned.studies), planned.choices) == (["template"], ())
    assert planned.skipped["number"] == "no number of samples below 3 to choose: name smaller ones with --sizes."
    assert not any(one.chosen_too for one in planned.conditions)
    with pytest.raises(MirError, match="no study can run: no number of samples below 3"):
        plan(few_kinds(), ["number"], 3, sizes=[100])


def test_the_content_study_crosses_all_images_with_all_texts():
    kinds = few_kinds(images=(Images("a", (b"1", b"2")), Images("b", (b"3", b"4"))), texts=few_kinds().texts * 1)
    planned = plan(kinds, ["content"], 2, seed=5)
    assert [one.name for one in planned.conditions] == ["a + notes", "b + notes"]
    assert planned.choices == ()
    assert kinds.fewest == 2


def test_a_moved_text_is_never_the_images_own_and_none_is_lost():
    for n in (2, 3, 11, 100):
        pairs = contents.embedded_pairs()
        own, other = contents.belonging(pairs, n).samples, contents.moved(pairs, n).samples
        assert sorted(one.text for one in own) == sorted(one.text for one in other)
        assert [one.image for one in own] == [one.image for one in other]
        if n % 10 != 1:
            assert all(a.text != b.text for a, b in zip(own, other, strict=True))
    with pytest.raises(MirError, match="at least 2"):
        contents.moved(Pairs("one", (Sample("s", b"", "text"),)), 1)


def test_embedded_contents_are_a_hundred_different_ones_of_each_kind():
    for kind in contents.embedded_images():
        assert len(kind) == 100
        assert len({pixels(image) for image in kind.images}) == 100
    for kind in contents.embedded_texts():
        assert len(set(kind.texts)) == len(kind) == 100
    assert all(len(text) >= 320 for text in contents.embedded_texts()[1].texts)


def test_the_first_embedded_condition_is_what_mir_run_measures():
    photographs, prose = contents.embedded_images()[0], contents.embedded_texts()[0]
    assert contents.paired(photographs, prose, 100, 0).fingerprint == embedded_samples().fingerprint
    assert contents.paired(photographs, prose, 9, 3).fingerprint == embedded_samples(9, seed=3).fingerprint
    [five] = choices(100, sizes=[5], repeats=1)
    assert list(five.indices) == embedded_samples(5, seed=0).description["choice"]


def test_folders_of_ones_own_become_contents(tmp_path):
    images, texts = tmp_path / "charts", tmp_path / "notes"
    for folder in (images, texts):
        folder.mkdir()
    picture = embedded_samples(2).samples[0].open_image()
    for name in ("2", "10"):
        picture.save(images / f"{name}.png")
        (texts / f"{name}.txt").write_text(f"text {name}")
    assert [path.name for path in contents.folder_images(images).images] == ["2.png", "10.png"]
    assert contents.folder_texts(texts) == Texts("notes", ("text 2", "text 10"))
    assert [one.text for one in contents.folder_pairs(images, texts).samples] == ["text 2", "text 10"]


def condition(checkpoint: str, name: str, mir: float, study: str = "content") -> ConditionResult:
    return ConditionResult(checkpoint, study, name, mir, None, mir - 0.1, mir + 0.1, 10, 250, 900, f"{name}/mir.json")


@pytest.mark.parametrize(
    ("a", "b", "against", "outcome", "ratio"),
    [
        ((2.0, 2.1), None, {}, "nothing to compare with", None),
        ((2.0, 2.1), None, {"other": 3.0}, "robust", 0.1),
        ((2.0, 2.6), None, {"other": 3.0}, "unclear", 0.6),
        ((2.0, 3.1), None, {"other": 3.0}, "not robust", 1.1),
        ((2.0, 2.1), None, {"other": 2.0}, "unclear", None),
        ((2.0, 2.4), (3.0, 3.4), {}, "robust", 0.4),
        ((2.0, 3.4), (3.0, 4.4), {}, "order kept", 1.4),
        ((2.0, 2.9), (3.0, 2.8), {}, "not robust", 0.9),
        ((2.0, 2.4), (3.0, 3.4), {"other": 2.2}, "order kept", 2.0),
    ],
)
def test_a_spread_is_held_against_the_smallest_difference_and_the_order(a, b, against, outcome, ratio):
    found = [condition("a", name, mir) for name, mir in zip(("x", "y"), a, strict=True)]
    found += [condition("b", name, mir) for name, mir in zip(("x", "y"), b or (), strict=bool(b))]
    [verdict] = verdicts(found, [], against)
    assert verdict.outcome == outcome
    assert verdict.ratio == (None if ratio is None else pytest.approx(ratio))
    assert verdict.n_orders == (2 if b else 0)


def test_choices_are_judged_at_half_of_the_samples_and_by_the_order_of_all():
    values = {10: ((1.0, 2.0), (1.3, 1.2)), 50: ((1.1, 1.9), (1.2, 1.8)), 80: ((5.0, 4.0),), 100: ((1.15, 1.85),)}
    found = [
        ChoiceResult(name, n, seed, mir)
        for n, rows in values.items()
        for seed, row in enumerate(rows)
        for name, mir in zip("ab", row, strict=True)
    ]
    base = [condition("a", "x", 1.15, "number"), condition("b", "x", 1.85, "number")]
    [verdict] = verdicts(base, found, {})
    assert verdict.spread == pytest.approx(0.1)
    assert "2 choices of 50" in verdict.sentence
    report = Robustness({"a": "a", "b": "b"}, 100, tuple(base), tuple(found), (verdict,))
    assert report.orders_by_number() == {10: (1, 2), 50: (2, 2), 80: (0, 1), 100: (1, 1)}
    first = report.number_rows()[0]
    assert (first.checkpoint, first.n_samples, first.n_choices) == ("a", 10, 2)
    assert (first.mean, first.low, first.high) == pytest.approx((1.15, 1.0, 1.3))
    assert first.bias == pytest.approx(0.0)
    assert first.deviation == pytest.approx(0.3 / 2**0.5)


def test_choices_are_held_against_the_order_of_what_they_were_taken_from():
    relevance = [condition(name, "own text", mir, "relevance") for name, mir in (("a", 1.0), ("b", 2.0))]
    content = [condition(name, "x", mir, "number") for name, mir in (("a", 2.0), ("b", 1.0))]
    found = [
        ChoiceResult(name, n, seed, mir)
        for n, seed in ((50, 0), (50, 1), (100, 0))
        for name, mir in (("a", 2.0), ("b", 1.0))
    ]
    verdict = verdicts([*relevance, *content], found, {})[1]
    report = Robustness({"a": "a", "b": "b"}, 100, tuple(relevance), tuple(found), ())
    assert (verdict.study, verdict.n_same_order, verdict.n_orders) == ("number", *report.orders_by_number()[50])
    assert verdict.outcome == "robust"


def test_a_report_survives_its_file_and_damage_is_named(tmp_path):
    base = (condition("a", "x", 1.0), condition("a", "y", 1.1))
    report = Robustness({"a": "runs/a"}, 10, base, (), verdicts(base, [], {}), {"exposure": "why"}, {"b": 2.0}, ("n",))
    assert Robustness.load(report.save(tmp_path / "robustness.json")) == report
    (tmp_path / "robustness.json").write_text("{}")
    with pytest.raises(MirError, match=r"robustness\.json is not a complete robustness report"):
        Robustness.load(tmp_path / "robustness.json")


@pytest.mark.slow
def test_the_command_measures_once_and_keeps_what_is_measured(monkeypatch, capsys, tmp_path):
    from test_cli import mir

    from mir_plugin.model_adapters import Checkpoint

    arguments = (
        "robustness", *MICRO, "--n-samples", 3, "--studies", "template,exposure,number", "--sizes", "1,2",
        "--repeats", 2, "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert mir(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "with and without conversation template" in printed and "left out" not in printed
    report = Robustness.load(tmp_path / "robustness.json")
    assert [one.n_samples for one in report.choices if one.checkpoint == "micro_llava_step-5"] == [1, 1, 2, 2, 3]
    whole = MirResult.load(tmp_path / "micro_llava_step-5" / "photographs-prose" / "mir.json")
    assert report.choices[4].mir == whole.mir
    bare = MirResult.load(tmp_path / "micro_llava_step-5" / "photographs-prose-no-template" / "mir.json")
    assert bare.facts["prompt_template"] == "<image>\n{text}"
    assert bare.layers[0].n_text_tokens < whole.layers[0].n_text_tokens
    assert bare.fingerprints["protocol"] != whole.fingerprints["protocol"]
    assert (tmp_path / "robustness.png").stat().st_size > 10_000 and (tmp_path / "robustness.svg").is_file()

    def loaded_again(*_, **__):
        raise AssertionError("a finished condition was measured again")

    monkeypatch.setattr(Checkpoint, "load", loaded_again)
    assert mir(monkeypatch, *arguments) == 0
    again = Robustness.load(tmp_path / "robustness.json")
    assert (again.conditions, again.choices) == (report.conditions, report.choices)
    with pytest.raises(AssertionError, match="measured again"):
        mir(monkeypatch, *arguments, "--repeats", 3)


@pytest.mark.slow
def test_original_checkpoints_leave_their_template_out():
    from mir_plugin.model_adapters import LoadOptions, load_adapter

    case = require_golden("llava/llava_projector")
    adapter = load_adapter(case / "model", LoadOptions(base_llm=case / "base_llm", device="cpu"))
    bare = adapter.without_template()
    assert bare.facts["prompt_template"] == "<image>\n{text}"
    assert adapter.facts["prompt_template"].startswith("A chat between")
    [sample] = embedded_samples(1).samples
    whole, alone = adapter.encode([sample]), bare.encode([sample])
    assert alone.vision_mask.sum() == whole.vision_mask.sum()
    assert alone.text_mask.sum() < whole.text_mask.sum()
    assert not (alone.vision_mask | alone.text_mask)[0, 1:].logical_not().any()  # nothing but bos stands before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seen", "a", "b"], "--seen and --unseen go together"),
        (["--sizes", "1,x"], "--sizes is '1,x'; expected whole numbers"),
        (["--studies", "colour"], "unknown study 'colour'"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--n-samples", "101"], "101 samples"),
        (["--against", "nothing.json"], "there is no nothing.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(monkeypatch, capsys, tmp_path, arguments, message):
    from test_cli import mir

    monkeypatch.chdir(tmp_path)
    assert mir(monkeypatch, "robustness", MICRO[0], *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())
