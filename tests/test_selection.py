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
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import Selection, select

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
    (only,) = selection.runs
    return only.trend, only.saturated_at.step if only.saturated_at else None


def test_a_plateau_recommends_its_first_checkpoint_and_names_the_others() -> None:
    selection = select(run_of([3.0, 2.5, 2.01, 2.0, 2.02], size=0.02))
    assert selection.sentence == "Fine-tune step 300; steps 300 to 500 (3 checkpoints) may be within 0.01 of the best."
    assert (selection.outcome, selection.recommended.step) == ("clear", 300)
    assert trend(selection) == ("saturated", 300)
    assert [one.candidate.step for one in selection.ranking] == [400, 300, 500, 200, 100]
    assert [one.tied for one in selection.ranking] == [True, True, True, False, False]
    assert "2 of 4 other checkpoints are more than 0.01 worse, 2 may be within 0.01" in selection.reasons[1]
    assert "saturates at step 300" in selection.reasons[2]


def test_a_run_that_still_falls_at_its_end_should_go_on() -> None:
    selection = select(run_of([3.0, 2.8, 2.6]))
    assert (selection.outcome, selection.recommended.step) == ("still falling", 300)
    assert selection.sentence.startswith("Train further: MIR still falls at step 300")
    assert trend(selection) == ("still falling", None)


def test_a_run_that_rises_again_recommends_its_lowest() -> None:
    selection = select(run_of([3.0, 2.5, 2.9]))
    assert (selection.outcome, selection.recommended.step) == ("clear", 200)
    assert selection.sentence == "Fine-tune step 200; every other checkpoint is more than 0.01 worse."
    assert trend(selection) == ("rising again", None)


@pytest.mark.parametrize("values", [[2.002, 2.5, 2.0, 2.001, 2.0005], [2.002, 2.5, 2.0, 2.5]])
def test_a_tie_with_an_early_step_that_the_training_left_again_is_undecided(values: list[float]) -> None:
    selection = select(run_of(values, size=0.01))
    assert selection.ranking[0].candidate.step == 300
    assert {one.candidate.step for one in selection.ranking if one.tied is False} <= {200, 400}
    assert selection.outcome == "undecided"
    assert selection.sentence == (
        "No clear choice: step 300 has the lowest MIR, but 1 checkpoint with worse ones in between may be within "
        "0.01 of it."
    )


def test_a_tie_with_a_checkpoint_of_unknown_step_is_undecided() -> None:
    candidates = run_of([3.0, 2.0, 2.5], size=0.01)
    last = dataclasses.replace(run_of([2.001], size=0.01)[0], name="last", step=None)
    selection = select([*candidates, last])
    assert selection.outcome == "undecided"
    assert "1 checkpoint of unknown step may be within 0.01 of it" in selection.sentence


def test_names_that_hold_the_word_step_stay_whole() -> None:
    candidates = [*run_of([2.5, 2.01, 2.0], size=0.02, run="a_step"), *run_of([3.0], run="b_step")]
    sentence = select(candidates).sentence
    assert sentence == (
        "Fine-tune a_step_200; a_step_200 to a_step_300 (2 checkpoints) may be within 0.01 of the best. "
        "The best of the other run is more than 0.01 worse."
    )


def test_differences_below_the_tolerance_do_not_matter() -> None:
    candidates = run_of([3.0, 2.004, 2.002, 2.0])
    assert select(candidates, tolerance=0).outcome == "still falling"
    selection = select(candidates, tolerance=0.005)
    assert (selection.outcome, selection.recommended.step) == ("clear", 200)
    assert "1 of 3 other checkpoints is more than 0.005 worse, 2 are within 0.005" in selection.reasons[1]
    assert "2 of these are certainly different from the best" in selection.reasons[1]
    assert selection.reasons[2] == (
        "MIR saturates at step 200: from there on every checkpoint is within 0.005 of the best."
    )


@pytest.mark.parametrize(("tolerance", "outcome"), [(0.0, "undecided"), (0.01, "undecided"), (0.1, "clear")])
def test_more_samples_are_asked_for_only_while_they_could_tell_something(tolerance: float, outcome: str) -> None:
    selection = select(run_of([2.001, 2.0, 2.002], size=0.01), tolerance=tolerance)
    assert selection.outcome == outcome
    assert ("measure more" in selection.sentence) is (outcome == "undecided")
    if outcome == "clear":
        assert selection.sentence == "Fine-tune step 100; steps 100 to 300 (3 checkpoints) are within 0.1 of the best."


def test_a_tie_with_another_run_is_undecided() -> None:
    one, other = run_of([3.0, 2.0], size=0.02, run="linear"), run_of([3.0, 2.01], size=0.02, run="mlp")
    selection = select([*one, *other])
    assert selection.outcome == "undecided"
    assert selection.sentence == (
        "No clear choice between runs: linear_200 has the lowest MIR, but the best of the other run may be within "
        "0.01 of it."
    )
    assert [(one.run, one.best.candidate.step) for one in selection.runs] == [("linear", 200), ("mlp", 200)]


def test_nothing_told_apart_is_undecided_and_asks_for_more_samples() -> None:
    selection = select(run_of([2.01, 2.0, 2.02], size=0.05))
    assert selection.outcome == "undecided"
    assert "on 40 samples none of the others is shown to be more than 0.01 worse" in selection.sentence
    assert "on 40 samples no other can be told from it" in select(run_of([2.01, 2.0, 2.02], 0.05), tolerance=0).sentence


def test_one_checkpoint_alone_is_undecided() -> None:
    selection = select(run_of([2.0]))
    assert (selection.outcome, trend(selection)) == ("undecided", ("unknown", None))
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


# What was seen in use: three runs of eight checkpoints, whose table and text disagreed.


def test_the_table_and_the_text_say_the_same_of_each_checkpoint() -> None:
    """Whether all comparisons together leave a checkpoint tied is asked once, and everything follows from it."""
    for seed in range(40):
        drawn = random.Random(seed)
        selection = select(
            run_of(sorted((drawn.uniform(2.0, 2.2) for _ in range(8)), reverse=True), size=0.02), tolerance=0
        )
        (run,) = selection.runs
        tied = {one.candidate.step: one.tied for one in selection.ranking}
        if run.trend == "still falling":
            assert tied[800] and not tied[700]
        if run.saturated_at:
            assert all(tied[step] for step in tied if step >= (run.saturated_at.step or 0))
            assert not tied.get((run.saturated_at.step or 0) - 100)


def test_a_run_s_verdict_does_not_depend_on_what_else_lies_in_the_folder() -> None:
    own = run_of([2.3, 2.09, 2.04, 2.0], size=0.03, run="a")
    alone = select(own).runs[0]
    for others in (run_of([1.0] * 9, size=0.03, run="b"), run_of([3.0], run="c"), run_of([2.01] * 30, 0.03, run="d")):
        (beside,) = (one for one in select([*own, *others]).runs if one.run == "a")
        assert beside.ranking == alone.ranking
        assert (beside.trend, beside.saturated_at, beside.outcome) == (alone.trend, alone.saturated_at, alone.outcome)


def test_a_plateau_of_thousandths_is_enough_training_unless_asked_strictly() -> None:
    plateau = run_of([1.391, 0.561, 0.559, 0.558])
    selection = select(plateau)
    assert (selection.outcome, selection.recommended.step) == ("clear", 200)
    assert selection.sentence == "Fine-tune step 200; steps 200 to 400 (3 checkpoints) are within 0.01 of the best."
    assert select(plateau, tolerance=0).outcome == "still falling"


def test_nothing_is_called_indistinguishable_whose_interval_excludes_zero() -> None:
    selection = select(run_of([1.391, 0.561, 0.559, 0.558]))
    within = [one for one in selection.ranking if one.within and one.behind]
    assert all(one.behind and one.behind.distinguishable for one in within)
    told = " ".join([selection.sentence, *selection.reasons])
    assert "indistinguishable" not in told and "told apart" not in told
    assert "2 of these are certainly different from the best" in told


def test_equivalence_is_tested_with_two_one_sided_tests() -> None:
    candidates = run_of([2.5, 2.0, 2.004], size=0.002)
    second = select(candidates).ranking[1].behind
    assert second is not None and second.standard_error is not None
    quantile = student.ppf(1 - 0.05 / 2, N_SAMPLES - 1)  # two comparisons, each of the two tests on one side
    upper = second.difference + quantile * second.standard_error
    assert second.equivalence_high == pytest.approx(upper)
    assert second.is_within(upper + 1e-9) and not second.is_within(upper - 1e-9)


def test_each_run_has_its_best_and_runs_are_compared_by_their_best() -> None:
    selection = select([*run_of([3.0, 2.0, 2.5], run="a"), *run_of([2.9, 2.4, 2.2], run="b"), *run_of([2.8], run="c")])
    assert [(one.run, one.best.candidate.name) for one in selection.runs] == [
        ("a", "a_200"),
        ("b", "b_300"),
        ("c", "c_100"),
    ]
    assert selection.sentence == (
        "Fine-tune a_200; every other checkpoint of its run is more than 0.01 worse. "
        "The best of every other run is more than 0.01 worse."
    )
    assert [one.outcome for one in selection.runs] == ["clear", "still falling", "undecided"]
    assert {one.candidate.name: one.against and one.against.name for one in selection.ranking} == {
        "a_200": None, "b_300": "a_200", "c_100": "a_200", "a_300": "a_200", "a_100": "a_200", "b_200": "b_300",
        "b_100": "b_300",
    }  # fmt: skip
    document = selection.as_json()
    assert [one["best"]["name"] for one in document["runs"]] == ["a_200", "b_300", "c_100"]


def test_one_other_checkpoint_is_counted_in_words() -> None:
    worse = select(run_of([2.0, 2.5], size=0.01))
    assert worse.reasons[1].startswith("the other checkpoint is more than 0.01 worse: paired over 40 samples")
    assert worse.sentence == "Fine-tune step 100; the other checkpoint is more than 0.01 worse."
