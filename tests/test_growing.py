"""Measuring on growing sets of samples: what is measured, when it stops, and what the verdict makes of it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import mir
from scipy.special import ndtri

from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.engine.spool import Spool
from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import on_common_samples
from mir_plugin.measurement.growing import NestedSamples, features_are_kept, looks_up_to
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.results import Look, MirConfig, MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.selection.comparison import compare_results
from mir_plugin.selection.dry_run import known_cost
from mir_plugin.selection.further import further_looks
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import select
from mir_plugin.selection.spending import levels_of, nominal_levels
from mir_plugin.selection.sweep import Measured, Sweep, SweepEntry
from mir_plugin.selection.sweep_measuring import SweepMeasuring

from golden_data import require_golden
from tolerances import SAME_FEATURES
from toy import ToyAdapter, toy_samples

PLANNED = (16, 32, 64, 100)


def test_levels_are_those_of_published_tables_and_spend_what_is_planned() -> None:
    # Pocock-type spending, five equal looks, two-sided 0.05: tables of Lan & DeMets' program (ldbounds).
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    pocock = tuple(0.05 * float(np.log(1 + (np.e - 1) * t)) for t in shares)
    bounds = [float(-ndtri(level / 2)) for level in levels_of(pocock, shares)]
    assert bounds == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=1e-4)  # the tables' digits
    assert nominal_levels(0.05, [100]) == (0.05,)
    for alpha in (0.05, 0.05 / 9):
        assert alpha / 4 < sum(nominal_levels(alpha, PLANNED)) - 0.1 * alpha
        assert max(nominal_levels(alpha, PLANNED)) < alpha < sum(nominal_levels(alpha, PLANNED))


def test_all_looks_together_err_as_often_as_one_may() -> None:
    n_paths, alpha = 100_000, 0.05
    steps = np.random.default_rng(0).standard_normal((n_paths, 4)) * np.sqrt(np.diff([0, *PLANNED]))
    scores = np.abs(steps.cumsum(axis=1)) / np.sqrt(PLANNED)
    bounds = -ndtri(np.array(nominal_levels(alpha, PLANNED)) / 2)
    share = (scores > bounds).any(axis=1).mean()
    assert share == pytest.approx(alpha, abs=4 * (alpha * (1 - alpha) / n_paths) ** 0.5)  # four standard errors
    assert (scores > -ndtri(alpha / 2)).any(axis=1).mean() > 2 * alpha  # what looking without a plan would cost


@pytest.mark.parametrize(("n", "looks"), [(5, (5,)), (16, (16,)), (21, (21,)), (22, (16, 22)), (1000, None)])
def test_looks_double_and_end_with_all(n: int, looks: tuple[int, ...] | None) -> None:
    found = looks_up_to(n)
    assert found == looks or (looks is None and found == (16, 32, 64, 128, 256, 512, 1000))


def test_parts_of_a_set_contain_the_smaller_ones_in_the_order_of_the_set() -> None:
    samples = SampleSet(tuple(toy_samples(40)), {"source": "toy"})
    nested = NestedSamples(samples, 0.0)
    parts = [[sample.sample_id for sample in nested.first(n).samples] for n in nested.planned]
    whole = [sample.sample_id for sample in samples.samples]
    for part, larger in zip(parts, [*parts[1:], whole], strict=True):
        assert set(part) <= set(larger) and part == [one for one in whole if one in part]
    assert parts[0] != whole[:16]  # drawn: the set may be sorted
    assert nested.first(40).fingerprint == samples.fingerprint
    with pytest.raises(MirError, match="41"):
        samples.first(41)


class CountingAdapter(ToyAdapter):
    """Notes which samples reach the model."""

    def __init__(self, **size: int) -> None:
        super().__init__(**size)
        self.ran: list[str] = []

    def encode(self, samples: Sequence[Sample]) -> Any:
        self.ran += [sample.sample_id for sample in samples if len(sample.text) > 3]
        return super().encode(list(samples))


def grown(adapter: ToyAdapter, nested: NestedSamples, kept: KeptFeatures | None) -> list[MirResult]:
    return [measure(adapter, nested.first(n), checkpoint="toy", kept=kept, batch_size=3) for n in nested.planned]


def assert_same(one: MirResult, other: MirResult) -> None:
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        assert ours.distance == pytest.approx(theirs.distance, rel=SAME_FEATURES)
    assert one.inputs == other.inputs
    assert one.fingerprints == other.fingerprints
    ours, theirs = (list(map(float, result.uncertainty["influences"].split())) for result in (one, other))
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)  # five digits are stored


def test_kept_features_give_what_running_all_samples_again_gives() -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(40))), 0.0)
    adapter = CountingAdapter(n_layers=3)
    with KeptFeatures(3) as kept:
        results = grown(adapter, nested, kept)
    for n, result in zip(nested.planned, results, strict=True):
        assert_same(result, measure(ToyAdapter(), nested.first(n), checkpoint="toy", batch_size=3))
    assert [result.engine["kept_samples"] for result in results] == [0, 16]
    checked = 2 * [nested.first(16).samples[0].sample_id, nested.all.samples[0].sample_id]
    assert len([one for one in adapter.ran if one not in checked]) <= 40  # each of the others once


def test_a_full_disk_makes_samples_run_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(90))), 0.0)
    assert nested.planned == (16, 32, 64, 90)
    adds = {"left": 4}  # three layers of the first look, one of the second

    def add(self: Spool, features: Any, whole: Callable[..., None] = Spool.add) -> None:
        adds["left"] -= 1
        if adds["left"] < 0:
            raise MirError("the disk is full")
        whole(self, features)

    monkeypatch.setattr(Spool, "add", add)
    with KeptFeatures(3) as kept:
        results = grown(ToyAdapter(), nested, kept)
    assert [result.engine["kept_samples"] for result in results] == [0, 16, 0, 0]
    assert "the disk is full" in caplog.text
    for n, result in zip(nested.planned, results, strict=True):
        assert_same(result, measure(ToyAdapter(), nested.first(n), checkpoint="toy", batch_size=3))


def test_features_that_would_fill_the_disk_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(40))), 0.0)
    sizes: list[int] = []
    measure(
        ToyAdapter(),
        nested.first(16),
        checkpoint="toy",
        watch=lambda of: sizes.append(sum(rows.numel() * rows.element_size() for rows in (of.vision, of.text))),
    )
    usage = shutil.disk_usage("/")
    for free, kept_samples in ((2 * sum(sizes) - 1, 0), (1000 * sum(sizes), 16)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with KeptFeatures(3) as kept:
            results = grown(ToyAdapter(), nested, kept)
        assert [result.engine["kept_samples"] for result in results] == [0, kept_samples]
        assert ("free in TMPDIR" in caplog.text) is (kept_samples == 0)
        caplog.clear()


def test_samples_run_again_on_an_accelerator_which_is_faster_than_a_disk() -> None:
    adapter = ToyAdapter()
    assert features_are_kept(adapter)
    adapter.device = torch.device("cuda")
    assert not features_are_kept(adapter)


def test_nothing_is_kept_of_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(40))), 0.0)
    added: list[int] = []

    def add(self: Spool, features: Any, whole: Callable[..., None] = Spool.add) -> None:
        added.append(len(features.vision_counts))
        whole(self, features)

    monkeypatch.setattr(Spool, "add", add)
    with KeptFeatures(3) as kept:
        measure(ToyAdapter(), nested.first(16), checkpoint="toy", kept=kept)
        kept.more_follow = False
        last = measure(ToyAdapter(), nested.first(40), checkpoint="toy", kept=kept)
    assert last.engine["kept_samples"] == 16 and added == [16] * 3


def test_what_a_broken_off_look_kept_is_not_used() -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(40))), 0.0)

    def broken(features: Any) -> None:
        if features.layer == 2:
            raise KeyboardInterrupt

    with KeptFeatures(3) as kept:
        measure(ToyAdapter(), nested.first(16), checkpoint="toy", kept=kept, batch_size=3)
        with pytest.raises(KeyboardInterrupt):
            measure(ToyAdapter(), nested.first(40), checkpoint="toy", kept=kept, batch_size=3, watch=broken)
        again = measure(ToyAdapter(), nested.first(40), checkpoint="toy", kept=kept, batch_size=3)
    assert again.engine["kept_samples"] == 0
    assert_same(again, measure(ToyAdapter(), nested.first(40), checkpoint="toy", batch_size=3))


def looked(values: Mapping[int, float], size: float = 0.0, name: str = "c") -> MirResult:
    """A result with these values at these looks, and a standard error of ``size`` with 100 samples."""
    drawn = random.Random(name)
    noise = [drawn.gauss(0, size) for _ in range(100)]
    looks = []
    for n, value in values.items():
        mean = statistics.fmean(noise[:n])
        influences = " ".join(f"{(one - mean) * 10 / n:.6g}" for one in noise[:n])
        prints = {"samples": f"first {n}", "protocol": "p"}
        spread = {"standard_error": size * (100 / n) ** 0.5, "influences": influences}
        looks.append(Look(n, value, None, None, prints, {}, {}, spread))
    last = looks.pop()
    fields = {field.name: getattr(last, field.name) for field in dataclasses.fields(Look)}
    more: dict[str, Any] = {"looks": tuple(looks), "planned": PLANNED, "estimator": "exact", "config": MirConfig()}
    return MirResult(checkpoint=name, family="toy", layers=(), **fields, **more)


def run_of(*results: MirResult) -> list[Candidate]:
    return [Candidate(f"run_{k}", "run", k, result) for k, result in enumerate(results, start=1)]


def test_checkpoints_that_stopped_at_different_numbers_are_compared_on_what_they_share() -> None:
    near = {16: 2.30, 32: 2.20, 64: 2.10, 100: 2.00}
    far = {16: 2.80}  # as a single number it says nothing beside 2.00
    selection = select(run_of(looked(near, 0.001, "a"), looked(far, 0.001, "b")))
    assert selection.outcome == "clear" and selection.recommended.name == "run_1"
    best, worse = selection.ranking
    assert worse.behind is not None and worse.behind.difference == pytest.approx(0.5)
    assert (worse.n_samples, worse.mir) == (16, pytest.approx(2.5))  # as it would stand with 100
    assert "paired over 16 samples" in selection.reasons[1]
    assert best.candidate.result.n_samples == 100


def test_a_value_that_fewer_samples_make_lower_does_not_lead() -> None:
    selection = select(run_of(looked({16: 1.9}, 0.001, "a"), looked({16: 1.5, 32: 2.0}, 0.001, "b")))
    assert selection.recommended.name == "run_2"
    assert selection.ranking[1].behind is not None and selection.ranking[1].behind.difference == pytest.approx(0.4)


def test_what_was_worse_at_a_look_stays_worse_when_another_one_leads_later() -> None:
    lead = looked({16: 2.00, 32: 2.00}, 0.004, "a")
    later = looked({16: 2.05, 32: 1.99}, 0.004, "b")
    out = looked({16: 2.25}, 0.004, "c")
    worse = select(run_of(lead, later, out)).ranking[-1]
    assert worse.candidate.name == "run_3" and worse.tied is False
    assert worse.against is not None and worse.against.name == "run_1" and worse.n_samples == 16


def test_intervals_of_looks_are_wider_than_that_of_one_look() -> None:
    one_look = dataclasses.replace(looked({100: 2.02}, 0.01, "b"), planned=())
    plain = select(run_of(dataclasses.replace(looked({100: 2.0}, 0.01, "a"), planned=()), one_look)).ranking[1].behind
    last = select(run_of(looked({100: 2.0}, 0.01, "a"), looked({100: 2.02}, 0.01, "b"))).ranking[1].behind
    assert plain is not None and last is not None and None not in (plain.high, last.high)
    assert last.high > plain.high and last.equivalence_high > plain.equivalence_high  # type: ignore[operator]
    assert last.high < plain.high + 0.2 * (plain.high - plain.difference)  # type: ignore[operator]


def test_results_with_looks_survive_being_saved_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(40))), 0.0)
    few, many = grown(ToyAdapter(), nested, None)
    result = dataclasses.replace(many, looks=(few.as_look(),), planned=nested.planned)
    path = result.save(tmp_path / "mir.json")
    again = MirResult.load(path)
    assert again == result and again.numbers_of_samples == (16, 40)
    assert again.at(16).mir == few.mir and again.at(16).looks == () and again.at(40) == again
    assert again.at(16).uncertainty["influences"] == few.uncertainty["influences"]
    for change in ({"n_samples": 40}, {"uncertainty": {"influences": "1 2", "n_groups": 16}}):
        document = json.loads(path.read_text())
        document["looks"][0] |= change
        with pytest.raises(MirError, match=r"mir\.json"):
            MirResult.from_json(json.dumps(document))


def test_two_results_are_compared_on_the_samples_both_have() -> None:
    a, b = looked({16: 2.2, 32: 2.1}, 0.001, "a"), looked({16: 2.5}, 0.001, "b")
    comparison = compare_results(a, b)
    assert comparison.mir.difference == pytest.approx(0.3) and comparison.paired
    assert comparison.told == ("Measured on 32 (A) and 16 (B) samples; compared on 16.",)
    alone = dataclasses.replace(looked({100: 2.0}, 0.001, "c"), planned=())
    assert on_common_samples(a, alone) == (a, alone)
    with pytest.raises(MirError, match="samples"):
        compare_results(a, alone)


def entries_of(*results: MirResult, runs: Sequence[str] = (), asked: bool = True) -> list[SweepEntry]:
    runs = runs or ["run"] * len(results)
    return [
        SweepEntry(Path(f"c-{k}"), f"c-{k}", run, k, "measured", result, asked=asked)
        for k, (run, result) in enumerate(zip(runs, results, strict=True), start=1)
    ]


def test_only_what_is_undecided_goes_on() -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(100))), 0.0)
    first = {16: 2.0}
    close, far, same = looked({16: 2.03}, 0.01, "b"), looked({16: 2.9}, 0.01, "c"), looked({16: 2.0}, 1e-5, "d")
    lead = looked(first, 0.01, "a")
    assert further_looks(entries_of(lead, close, far), nested, 0.01) == {"c-1": 32, "c-2": 32}
    assert further_looks(entries_of(lead, far), nested, 0.01) == {}
    assert further_looks(entries_of(looked(first, 1e-5, "a"), same), nested, 0.01) == {}  # shown to be within
    assert further_looks(entries_of(looked(first, 1e-5, "a"), same), nested, 0.0) == {"c-1": 32, "c-2": 32}
    # One that lags behind catches up; the other waits for it.
    ahead = looked({16: 2.0, 32: 2.0, 64: 2.0}, 0.01, "a")
    assert further_looks(entries_of(ahead, close), nested, 0.01) == {"c-2": 32}
    # A result of an earlier command goes on like one of this one; two protocols have no verdict.
    before = [dataclasses.replace(entry, state="kept") for entry in entries_of(lead, close)]
    assert further_looks(before, nested, 0.01) == {"c-1": 32, "c-2": 32}
    other = dataclasses.replace(close, fingerprints={**close.fingerprints, "protocol": "q"})
    assert further_looks(entries_of(lead, other), nested, 0.01) == {}
    # Nothing is left to take, or nobody to take it from.
    end = [looked(dict.fromkeys(PLANNED, mir), 0.01, name) for mir, name in ((2.0, "a"), (2.001, "b"))]
    assert further_looks(entries_of(*end), nested, 0.01) == {}
    assert further_looks(entries_of(lead, close, asked=False), nested, 0.01) == {}
    # Across runs only the best of each counts; one checkpoint alone goes on until it is precise.
    assert further_looks(entries_of(lead, close, runs=("a", "b")), nested, 0.01) == {"c-1": 32, "c-2": 32}
    assert further_looks(entries_of(lead), nested, 0.01) == {"c-1": 32}
    assert further_looks(entries_of(lead), NestedSamples(nested.all, 0.03), 0.01) == {}  # its error is 0.025


def test_features_of_what_is_decided_are_given_back() -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(100))), 0.0)
    measuring = SweepMeasuring(LoadOptions(), nested.all, MirConfig(), nested=nested)
    entries = entries_of(looked({16: 2.0}, 0.01, "a"), looked({16: 2.03}, 0.01, "b"), looked({16: 2.9}, 0.01, "c"))
    for entry in entries:
        measuring.kept_features[entry.checkpoint] = KeptFeatures(3)
    assert measuring.further(0.01)(entries).keys() == {"c-1", "c-2"}
    assert measuring.kept_features.keys() == {Path("c-1"), Path("c-2")}


def test_a_dry_run_takes_no_checkpoint_s_time_from_a_part_of_the_samples(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, lambda *_: Measured(looked({16: 2.0}), kept=False), writes=False)
    results = [looked({16: 2.0}, 0.01, "a"), looked(dict.fromkeys(PLANNED, 2.0), 0.01, "b")]
    sweep.entries += entries_of(*[dataclasses.replace(r, timing={"total": float(r.n_samples)}) for r in results])
    cost = known_cost(sweep)
    assert cost is not None and cost.seconds == 100
    sweep.entries.pop()
    assert known_cost(sweep) is None


def test_a_precise_one_stops_although_the_comparison_is_open() -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(100))), 0.03)
    lead, close = looked({16: 2.0}, 0.01, "a"), looked({16: 2.03}, 0.02, "b")  # errors 0.025 and 0.05
    assert further_looks(entries_of(lead, close), nested, 0.01) == {"c-2": 32}


def test_a_sweep_takes_samples_step_by_step_and_tells_of_each_checkpoint_once(tmp_path: Path) -> None:
    nested = NestedSamples(SampleSet(tuple(toy_samples(100))), 0.0)
    truth = {1: (2.0, 0.01), 2: (2.02, 0.01), 3: (2.9, 0.01)}
    seen: list[tuple[int, int | None]] = []

    def measured(checkpoint: Path, path: Path, n: int | None = None) -> Measured:
        step = int(checkpoint.name.split("-")[1])
        seen.append((step, n))
        mir, size = truth[step]
        values = {look: mir for look in PLANNED if look <= (n or 16)}
        return Measured(looked(values, size, str(step)), kept=False)

    finished: list[str] = []
    sweep = Sweep(
        tmp_path,
        measured,
        further=lambda entries: further_looks(entries, nested, 0.01),
        on_finished=lambda entry: finished.append(entry.name),
    )
    sweep.add([Path(f"runs/checkpoint-{k}") for k in truth])
    sweep.run()
    assert seen[:5] == [(1, None), (2, None), (3, None), (1, 32), (2, 32)]
    assert seen.count((3, None)) == len([one for one in seen if one[0] == 3]) == 1
    rows = {row["step"]: row for row in json.loads((tmp_path / "sweep.json").read_text())["checkpoints"]}
    assert rows[3]["n_samples"] == 16 and rows[1]["n_samples"] == rows[2]["n_samples"] > 16
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 1, 2] and len(finished) == 3
    assert {line["step"]: line["n_samples"] for line in lines} == {step: rows[step]["n_samples"] for step in rows}


def options(case: Path, out: Path) -> list[object]:
    return [
        "--base-llm", case / "base_llm", "--vision-tower", case / "vision_tower", "--embedded", "--n-samples", 40,
        "--device", "cpu", "--out", out,
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_force_measures_again_what_the_folder_held_and_not_what_the_command_has_found(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "runs" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    seeds = iter(range(100))
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter(seed=next(seeds)))
    monkeypatch.setattr(Checkpoint, "spec", type("Spec", (), {"name": "toy"}))
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(40))))
    more = ["--no-report"] if command == "sweep" else []
    found = []
    for _ in range(2):
        assert mir(monkeypatch, command, checkpoint, "--precision", 0, "--force", "--out", tmp_path / "out", *more) == 0
        [path] = (tmp_path / "out").rglob("mir.json")
        found.append(MirResult.load(path))
    assert [result.numbers_of_samples for result in found] == [(16, 40)] * 2
    assert found[0].at(16).mir != found[1].at(16).mir


@pytest.mark.slow
def test_a_run_stops_when_it_is_precise_and_a_later_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, one_thread: None
) -> None:
    case = require_golden("llava/llava_projector")
    checkpoint = case / "model" / "checkpoint-20"
    arguments = ["run", checkpoint, *options(case, tmp_path / "out")]
    assert mir(monkeypatch, *arguments, "--precision", 10) == 0
    first = MirResult.load(tmp_path / "out")
    assert (first.n_samples, first.looks, first.planned) == (16, (), (16, 40))
    assert mir(monkeypatch, *arguments, "--precision", 10) == 0
    assert "already measured" in capsys.readouterr().err
    assert mir(monkeypatch, *arguments, "--precision", 0) == 0
    second = MirResult.load(tmp_path / "out")
    assert second.numbers_of_samples == (16, 40) and second.at(16).mir == first.mir
    # A run on all samples takes it for its own.
    assert mir(monkeypatch, *arguments) == 0
    assert "already measured" in capsys.readouterr().err
    assert mir(monkeypatch, "run", checkpoint, *options(case, tmp_path / "whole")) == 0
    assert second.mir == pytest.approx(MirResult.load(tmp_path / "whole").mir, rel=SAME_FEATURES)
    # And the other way round: what is there on all samples is precise enough.
    assert mir(monkeypatch, "run", checkpoint, *options(case, tmp_path / "whole"), "--precision", 0) == 0
    assert "already measured" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_with_precision_resumes_and_takes_up_what_others_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, one_thread: None
) -> None:
    case = require_golden("llava/llava_projector")
    runs = tmp_path / "runs"
    for step, name in ((10, ""), (20, "checkpoint-20")):
        (runs / f"checkpoint-{step}").mkdir(parents=True)
        for file in ("config.json", "mm_projector.bin"):
            (runs / f"checkpoint-{step}" / file).write_bytes((case / "model" / name / file).read_bytes())
    out = tmp_path / "out"
    arguments = ["sweep", f"{runs}/checkpoint-*", *options(case, out), "--no-report"]
    codes = [mir(monkeypatch, *arguments)]  # on all samples
    capsys.readouterr()
    plain = {path.parent.name: MirResult.load(path).mir for path in out.glob("*/mir.json")}
    codes.append(mir(monkeypatch, *arguments, "--precision", 0.001))
    told = capsys.readouterr().out
    assert codes[0] == codes[1]
    for path in out.glob("*/mir.json"):
        result = MirResult.load(path)
        assert result.numbers_of_samples == (16, 40) and result.mir == plain[path.parent.name]
    assert [line.split()[2] for line in told.splitlines() if "checkpoint-" in line and "measured" in line] == ["40"] * 2
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/mir.json")}
    assert mir(monkeypatch, *arguments, "--precision", 0.001) == codes[0]
    assert {row["state"] for row in json.loads((out / "sweep.json").read_text())["checkpoints"]} == {"kept"}
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/mir.json")}
    assert mir(monkeypatch, "select", out) == codes[0]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("sweep", ["--precision", "0.01", "--shard", "1/2"], "--precision"),
        ("sweep", ["--precision", "0.01", "--indicators", "--embedded"], "--indicators"),
        ("run", ["--precision", "0.01", "--no-uncertainty"], "--no-uncertainty"),
    ],
)
def test_what_does_not_go_together_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    assert mir(monkeypatch, command, tmp_path, *arguments) == 1
    assert message in capsys.readouterr().err
