"""The verdict on measured checkpoints: ranking, ties, saturation, recommendation."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from scipy.stats import t as student

from mir_plugin.errors import MirError
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.selection.select import Candidate, Selection, select

N_SAMPLES = 40
NO_NOISE = (0.0,) * N_SAMPLES


def measured(mir: float, influences: Sequence[float] = NO_NOISE, samples: str = "s", name: str = "c") -> MirResult:
    """A result with these influences of its samples; the layers play no part in a selection."""
    return MirResult(
        checkpoint=name,
        family="toy",
        mir=mir,
        mir_published=None,
        mir_published_upper=None,
        n_samples=len(influences),
        estimator="exact",
        config=MirConfig(),
        fingerprints={"samples": samples, "protocol": "p"},
        layers=(),
        uncertainty={"standard_error": 0.0, "influences": " ".join(map(str, influences))},
    )


def noise(size: float, seed: str) -> list[float]:
    """Influences whose standard error is about ``size``."""
    drawn = random.Random(seed)
    return [drawn.gauss(0, size / N_SAMPLES**0.5) for _ in range(N_SAMPLES)]


def run_of(values: Sequence[float], size: float = 0.0, run: str = "run") -> list[Candidate]:
    """Checkpoints of one run at steps 100, 200, …"""
    return [
        Candidate(f"{run}_{100 * k}", run, 100 * k, measured(mir, noise(size, f"{run} {k}") if size else NO_NOISE))
        for k, mir in enumerate(values, start=1)
    ]


def trend(selection: Selection) -> tuple[str, int | None]:
    (only,) = selection.trends
    return only.trend, only.saturated_at.step if only.saturated_at else None


def test_a_plateau_recommends_its_first_checkpoint_and_names_the_others() -> None:
    selection = select(run_of([3.0, 2.5, 2.01, 2.0, 2.02], size=0.02))
    assert selection.sentence == "Fine-tune step 300; steps 300 to 500 (3 checkpoints) are indistinguishable."
    assert (selection.outcome, selection.recommended.step) == ("clear", 300)
    assert trend(selection) == ("saturated", 300)
    assert [one.candidate.step for one in selection.ranking] == [400, 300, 500, 200, 100]
    assert [one.tied for one in selection.ranking] == [True, True, True, False, False]
    assert "2 of 4 others are distinguishably worse" in selection.reasons[1]
    assert "saturates at step 300" in selection.reasons[2]


def test_a_run_that_still_falls_at_its_end_should_go_on() -> None:
    selection = select(run_of([3.0, 2.8, 2.6]))
    assert (selection.outcome, selection.recommended.step) == ("still falling", 300)
    assert selection.sentence.startswith("Train further: MIR still falls at step 300")
    assert trend(selection) == ("still falling", None)


def test_a_run_that_rises_again_recommends_its_lowest() -> None:
    selection = select(run_of([3.0, 2.5, 2.9]))
    assert (selection.outcome, selection.recommended.step) == ("clear", 200)
    assert selection.sentence == "Fine-tune step 200; every other checkpoint is distinguishably worse."
    assert trend(selection) == ("rising again", None)


@pytest.mark.parametrize("values", [[2.002, 2.5, 2.0, 2.001, 2.0005], [2.002, 2.5, 2.0, 2.5]])
def test_a_tie_with_an_early_step_that_the_training_left_again_is_undecided(values: list[float]) -> None:
    selection = select(run_of(values, size=0.01))
    assert selection.ranking[0].candidate.step == 300
    assert {one.candidate.step for one in selection.ranking if one.tied is False} <= {200, 400}
    assert selection.outcome == "undecided"
    assert selection.sentence == (
        "No clear choice: step 300 has the lowest MIR, but 1 checkpoint with distinguishably worse ones in between "
        "cannot be told from it."
    )


def test_a_tie_with_a_checkpoint_of_unknown_step_is_undecided() -> None:
    candidates = run_of([3.0, 2.0, 2.5], size=0.01)
    last = dataclasses.replace(run_of([2.001], size=0.01)[0], name="last", step=None)
    selection = select([*candidates, last])
    assert selection.outcome == "undecided"
    assert "1 checkpoint of unknown step cannot be told from it" in selection.sentence


def test_names_that_hold_the_word_step_stay_whole() -> None:
    candidates = [*run_of([2.5, 2.01, 2.0], size=0.02, run="a_step"), *run_of([3.0], run="b_step")]
    sentence = select(candidates).sentence
    assert sentence == "Fine-tune a_step_200; a_step_200 to a_step_300 (2 checkpoints) are indistinguishable."


def test_differences_below_the_tolerance_do_not_matter() -> None:
    candidates = run_of([3.0, 2.004, 2.002, 2.0])
    assert select(candidates).outcome == "still falling"
    selection = select(candidates, tolerance=0.005)
    assert (selection.outcome, selection.recommended.step) == ("clear", 200)
    assert "worse by more than 0.005" in selection.reasons[1]
    assert selection.reasons[2] == (
        "MIR saturates at step 200: no later checkpoint is distinguishably more than 0.005 away."
    )


@pytest.mark.parametrize(("tolerance", "outcome"), [(0.0, "undecided"), (0.01, "undecided"), (0.1, "clear")])
def test_more_samples_are_asked_for_only_while_they_could_tell_something(tolerance: float, outcome: str) -> None:
    selection = select(run_of([2.001, 2.0, 2.002], size=0.01), tolerance=tolerance)
    assert selection.outcome == outcome
    assert ("measure more" in selection.sentence) is (outcome == "undecided")
    if outcome == "clear":
        assert selection.sentence == "Fine-tune step 100; steps 100 to 300 (3 checkpoints) are indistinguishable."


def test_a_tie_with_another_run_is_undecided() -> None:
    one, other = run_of([3.0, 2.0], size=0.02, run="linear"), run_of([3.0, 2.01], size=0.02, run="mlp")
    selection = select([*one, *other])
    assert selection.outcome == "undecided"
    assert selection.sentence == (
        "No clear choice: linear_200 has the lowest MIR, but 1 checkpoint of other runs cannot be told from it."
    )
    assert {trend.run for trend in selection.trends} == {"linear", "mlp"}


def test_nothing_told_apart_is_undecided_and_asks_for_more_samples() -> None:
    selection = select(run_of([2.01, 2.0, 2.02], size=0.05))
    assert selection.outcome == "undecided"
    assert "on 40 samples no other can be told from it; measure more" in selection.sentence


def test_one_checkpoint_alone_is_undecided() -> None:
    selection = select(run_of([2.0]))
    assert (selection.outcome, selection.trends) == ("undecided", ())
    assert "nothing to compare it with" in selection.sentence


def test_without_uncertainties_the_ranking_stands_but_decides_nothing() -> None:
    candidates = run_of([3.0, 2.0])
    bare = dataclasses.replace(candidates[0].result, uncertainty={})
    selection = select([Candidate("bare", "run", 100, bare), candidates[1]])
    assert selection.outcome == "undecided"
    assert selection.ranking[1].tied is None
    assert trend(selection) == ("unknown", None)
    assert "no uncertainty" in selection.warnings[0]


def test_results_of_different_samples_are_refused_unless_asked_for() -> None:
    candidates = [*run_of([3.0, 2.5]), Candidate("odd", "run", 300, measured(2.0, NO_NOISE[:-1], samples="other"))]
    with pytest.raises(MirError, match=r"run_100 and odd were not measured alike: they differ in samples \(40 of"):
        select(candidates)
    selection = select(candidates, anyway=True)
    assert "run_100 and odd were not measured alike" in selection.warnings[0]
    assert selection.ranking[0].candidate.name == "odd"


def test_no_result_is_an_error() -> None:
    with pytest.raises(MirError, match="no result to select from"):
        select([])


def test_the_confidence_holds_for_all_comparisons_with_the_best_together() -> None:
    candidates = run_of([2.0, 2.1, 2.2, 2.3], size=0.05)
    selection = select(candidates)
    second = selection.ranking[1].behind
    assert second is not None and second.standard_error is not None and second.high is not None
    quantile = student.ppf(1 - 0.05 / 3 / 2, N_SAMPLES - 1)  # three comparisons, two sides
    assert second.high - second.difference == pytest.approx(quantile * second.standard_error)


def test_the_truly_best_checkpoint_is_seldom_ruled_out() -> None:
    drawn = random.Random(0)
    n_trials, n_checkpoints, n_ruled_out = 300, 8, 0
    for _ in range(n_trials):
        candidates = []
        for number in range(n_checkpoints):
            # MIR as the mean of one number per sample: its influences are exactly (x − mean) / n. All are equally good.
            values = [drawn.gauss(2, 0.1) for _ in range(N_SAMPLES)]
            mean = statistics.fmean(values)
            influences = [(value - mean) / N_SAMPLES for value in values]
            candidates.append(Candidate(str(number), "run", number, measured(mean, influences)))
        ranked = {one.candidate.name: one for one in select(candidates).ranking}
        n_ruled_out += ranked["0"].tied is False
    # 5 % would be 15 of 300, with a standard deviation of 4; two-sided intervals make it about half of that.
    assert n_ruled_out <= 15


def test_the_json_has_every_part_of_the_verdict() -> None:
    selection = select(run_of([3.0, 2.5, 2.01, 2.0, 2.02], size=0.02))
    document: dict[str, Any] = json.loads(json.dumps(selection.as_json(), allow_nan=False))
    assert document["outcome"] == "clear"
    assert document["recommended"] == {"name": "run_300", "run": "run", "step": 300, "checkpoint": "c"}
    assert document["runs"][0]["saturated_at"]["step"] == 300
    assert document["ranking"][0]["behind_best"] is None
    assert document["ranking"][1]["behind_best"]["difference"] == pytest.approx(0.01)
    assert document["ranking"][4]["tied_with_best"] is False
