"""Which checkpoint to fine-tune: ranking, saturation and a recommendation, from results alone.

There is one set of comparisons, and table, text and exit code all follow from it:

* along the steps of a run, each checkpoint with the lowest of its run; no other run plays a part in these;
* across runs, the lowest of each run with the lowest of all.

Comparisons are paired over the samples (``mir_plugin.selection.comparison``). Within each of the two sets the intervals
are widened until the confidence holds for all of the set together (Bonferroni). Then the truly best checkpoint of a run
is, with that confidence, among those that are not shown to be worse than the one with the lowest value, which may be
lowest by luck.

A difference that is certain need not matter. Two questions are therefore asked of each comparison: is the difference
beyond the tolerance, and is it certain to be within (TOST, two one-sided tests; Schuirmann 1987, doi
10.1007/BF01068419)? Where neither is shown, that is what the verdict says.

Results of ``--precision`` were looked at several times while samples came in. Each comparison then takes place on the
samples that both have, with the interval of that look (``mir_plugin.selection.spending``), and what was shown to be
worse than the lowest of its look stays so: the argument above holds for all looks together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.measurement.diagnostics import fragile_values
from mir_plugin.metric.uncertainty import CONFIDENCE, TOLERANCE, has_uncertainty
from mir_plugin.selection.ranked import Candidate, Ranked, compared
from mir_plugin.selection.verdict_text import (
    Counts,
    across_reason,
    no_choice,
    no_choice_between_runs,
    other_runs_sentence,
    row_sentence,
    still_falling,
    trend_reason,
)

Outcome = Literal["clear", "undecided", "still falling"]
Trend = Literal["saturated", "still falling", "rising again", "unknown"]


@dataclass(frozen=True)
class RunVerdict:
    """The verdict along the steps of one run.

    Attributes:
        run: as in ``Candidate``.
        ranking: of the run alone, best first.
        trend: "saturated" if the last checkpoints, two or more, are all tied with the lowest of the run; "still
            falling" if the last is and the one before it is not; else "rising again"; "unknown" without uncertainties
            or with fewer than two known steps.
        saturated_at: the first of those last checkpoints.
        recommended, outcome, sentence: as of ``Selection``, if there were no other run.
        best: its lowest, compared with the lowest of all runs.
    """

    run: str
    ranking: tuple[Ranked, ...]
    trend: Trend
    saturated_at: Candidate | None
    recommended: Candidate
    outcome: Outcome
    sentence: str
    best: Ranked


@dataclass(frozen=True)
class Selection:
    """The verdict.

    Attributes:
        ranking: all candidates, best first.
        runs: the verdict along the steps of each run, in the order of their lowest MIR.
        recommended: what to fine-tune, or what comes closest to a choice where ``outcome`` is "undecided".
        outcome: "clear"; "undecided", where the measurements do not single out one checkpoint; "still falling", where
            the best is the last of its run and MIR has not settled.
        sentence: the recommendation.
        reasons: what it rests on.
        warnings: what to know before trusting it.
        tolerance: differences up to this do not count.
    """

    ranking: tuple[Ranked, ...]
    runs: tuple[RunVerdict, ...]
    recommended: Candidate
    outcome: Outcome
    sentence: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    tolerance: float

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; candidates by name."""
        return {
            "outcome": self.outcome,
            "recommended": _identity(self.recommended),
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "confidence": CONFIDENCE,
            "tolerance": self.tolerance,
            "ranking": [_ranked_json(one) for one in self.ranking],
            "runs": [
                {
                    "run": one.run,
                    "trend": one.trend,
                    "saturated_at": None if one.saturated_at is None else _identity(one.saturated_at),
                    "best": _ranked_json(one.best),
                    "recommended": _identity(one.recommended),
                    "outcome": one.outcome,
                    "sentence": one.sentence,
                }
                for one in self.runs
            ],
        }


def select(candidates: Sequence[Candidate], *, tolerance: float = TOLERANCE, anyway: bool = False) -> Selection:
    """Rank candidates and recommend one.

    Args:
        tolerance: differences of MIR up to this do not matter to the user, however well they are measured; 0 is strict.
        anyway: go on although samples or protocol differ; a warning says so.
    Raises:
        MirError: if there is no candidate, or if samples or protocol differ and ``anyway`` is not set.
    """
    if not candidates:
        raise MirError("no result to select from; name mir.json files, or folders that hold them.")
    warnings = _differences_in_protocol(candidates, anyway)
    if not all(has_uncertainty(one.result.uncertainty) for one in candidates):
        warnings.append("some results have no uncertainty (--no-uncertainty, or one sample): ranked by value alone.")
    warnings += fragile_values([(one.name, one.result.fragile) for one in candidates])
    label = _labels(candidates)
    by_run: dict[str, list[Candidate]] = {}
    for one in candidates:
        by_run.setdefault(one.run, []).append(one)
    rankings = [compared(members, tolerance) for members in by_run.values()]
    across = compared([ranking[0].candidate for ranking in rankings], tolerance)
    ranking_of = {id(ranking[0].candidate): ranking for ranking in rankings}
    runs = tuple(
        _run_verdict(ranking_of[id(best.candidate)], best, tolerance, label, alone=len(by_run) == 1) for best in across
    )
    recommended, outcome, sentence = _overall(runs, tolerance, label)
    return Selection(
        ranking=_over_all_runs(runs),
        runs=runs,
        recommended=recommended,
        outcome=outcome,
        sentence=sentence,
        reasons=tuple(_reasons(runs, tolerance, label)),
        warnings=tuple(warnings),
        tolerance=tolerance,
    )


def _run_verdict(
    ranking: tuple[Ranked, ...],
    best: Ranked,
    tolerance: float,
    label: Mapping[int, str],
    *,
    alone: bool,
) -> RunVerdict:
    """Of a run; ``alone`` if there is no other."""
    run = best.candidate.run
    steps = sorted((one for one in ranking if one.candidate.step is not None), key=lambda one: one.candidate.step or 0)
    trend, saturated_at = _trend(steps)
    others = "the other checkpoint" if len(ranking) == 2 else "every other checkpoint"
    others += "" if alone else " of its run"
    recommended, outcome, sentence = _along_steps(ranking, steps, trend, tolerance, label, others)
    return RunVerdict(run, ranking, trend, saturated_at, recommended, outcome, sentence, best)


def _trend(steps: Sequence[Ranked]) -> tuple[Trend, Candidate | None]:
    if len(steps) < 2 or any(one.tied is None for one in steps):
        return "unknown", None
    first = len(steps)
    while first > 0 and steps[first - 1].tied:
        first -= 1
    if len(steps) - first >= 2:
        return "saturated", steps[first].candidate
    return "still falling" if first < len(steps) else "rising again", None


def _along_steps(
    ranking: Sequence[Ranked],
    steps: Sequence[Ranked],
    trend: Trend,
    tolerance: float,
    label: Mapping[int, str],
    others: str,
) -> tuple[Candidate, Outcome, str]:
    best, name = ranking[0].candidate, label[id(ranking[0].candidate)]
    if len(ranking) == 1:
        return best, "undecided", no_choice(name, "there is nothing to compare it with")
    if any(one.tied is None for one in ranking):
        return best, "undecided", no_choice(name, "without uncertainties the error is unknown")
    counts = Counts.of(ranking[1:])
    if not counts.n_worse and counts.n_open:
        return best, "undecided", no_choice(name, counts.nothing_shown(tolerance, _numbers(ranking)))
    row = _tied_around(ranking[0], steps)
    in_row = {id(one.candidate) for one in row}
    apart = [one for one in ranking if one.tied and id(one.candidate) not in in_row]
    if apart:
        n_unknown = sum(one.candidate.step is None or best.step is None for one in apart)
        return best, "undecided", no_choice(name, Counts.of(apart).apart(n_unknown, tolerance))
    if trend == "still falling" and best is steps[-1].candidate:
        return best, "still falling", still_falling(name)
    recommended = row[0].candidate
    labels = [label[id(one.candidate)] for one in row]
    return recommended, "clear", row_sentence(labels, Counts.of(row), tolerance, others)


def _tied_around(best: Ranked, steps: Sequence[Ranked]) -> Sequence[Ranked]:
    """The unbroken row of steps around the best that are tied with it; the best alone if its step is unknown."""
    if best not in steps:
        return (best,)
    first = last = steps.index(best)
    while first > 0 and steps[first - 1].tied:
        first -= 1
    while last + 1 < len(steps) and steps[last + 1].tied:
        last += 1
    return steps[first : last + 1]


def _over_all_runs(runs: Sequence[RunVerdict]) -> tuple[Ranked, ...]:
    """All candidates, best first; the best of each run as it compares across runs."""
    placed = []
    for run in runs:
        apart = run.best.mir - run.ranking[0].mir
        placed += [(run.best.mir, run.best), *((one.mir + apart, one) for one in run.ranking[1:])]
    return tuple(one for _, one in sorted(placed, key=lambda of: of[0]))


def _overall(runs: Sequence[RunVerdict], tolerance: float, label: Mapping[int, str]) -> tuple[Candidate, Outcome, str]:
    """The verdict across runs; that along the steps where there is only one run."""
    best, *others = runs
    if not others:
        return best.recommended, best.outcome, best.sentence
    lowest = best.best.candidate
    counts = Counts.of([one.best for one in others])
    if any(one.best.tied is None for one in others):
        return lowest, "undecided", no_choice(label[id(lowest)], "without uncertainties the error is unknown")
    if counts.n_worse < len(others):
        of_runs = any(len(one.ranking) > 1 for one in runs)
        sentence = no_choice_between_runs(label[id(lowest)], counts, tolerance, len(runs), of_runs)
        return lowest, "undecided", sentence
    if len(best.ranking) == 1:
        of_runs = any(len(one.ranking) > 1 for one in others)
        which = "the other checkpoint" if len(others) == 1 else "every other checkpoint"
        which = which.replace("checkpoint", "run's best") if of_runs else which
        return lowest, "clear", row_sentence([label[id(lowest)]], counts, tolerance, which)
    return best.recommended, best.outcome, f"{best.sentence} {other_runs_sentence(len(others), tolerance)}"


def _reasons(runs: Sequence[RunVerdict], tolerance: float, label: Mapping[int, str]) -> list[str]:
    lowest = runs[0].best.candidate
    reasons = [f"{label[id(lowest)]} has the lowest MIR, {lowest.result.mir:.4f}."]
    if len(runs) > 1 and all(one.best.tied is not None for one in runs):
        reasons.append(
            across_reason(Counts.of([one.best for one in runs[1:]]), tolerance, _numbers([one.best for one in runs]))
        )
    for run in runs:
        where = f"{run.run}: " if len(runs) > 1 else ""
        others = run.ranking[1:]
        if not others or any(one.tied is None for one in others):
            continue
        best = run.ranking[0].candidate
        than = "" if len(runs) == 1 else f" than {label[id(best)]}"
        reasons.append(where + Counts.of(others).reason(tolerance, _numbers(run.ranking), than))
        after = [] if run.saturated_at is None else _from(run, run.saturated_at)
        at = "" if run.saturated_at is None else label[id(run.saturated_at)]
        told = trend_reason(run.trend, at, Counts.of(after), tolerance)
        if told:
            reasons.append(where + told)
    return reasons


def _numbers(ranking: Sequence[Ranked]) -> str:
    """On how many samples the others were compared with the best."""
    numbers = sorted({one.n_samples for one in ranking[1:]})
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _from(run: RunVerdict, first: Candidate) -> list[Ranked]:
    return [
        one
        for one in run.ranking
        if one.candidate.step is not None and one.behind is not None and one.candidate.step >= (first.step or 0)
    ]


def _differences_in_protocol(candidates: Sequence[Candidate], anyway: bool) -> list[str]:
    """Warnings: what reached the models differently, or, with ``anyway``, the first difference in protocol."""
    first = candidates[0]
    for other in candidates[1:]:
        differing = protocol_differences(first.result, other.result, (first.name, other.name))
        if differing:
            problem = f"{first.name} and {other.name} were not measured alike: they differ in {'; '.join(differing)}."
            if not anyway:
                raise MirError(f"{problem} Measure all with the same samples and options, or add --anyway.")
            return [f"{problem} Their MIR values may differ for that alone."]
    return list(
        dict.fromkeys(
            sentence
            for other in candidates[1:]
            for sentence in allowed_differences(first.result, other.result, (first.name, other.name))
        )
    )


def _identity(one: Candidate) -> dict[str, Any]:
    return {"name": one.name, "run": one.run, "step": one.step, "checkpoint": one.result.checkpoint}


def _ranked_json(one: Ranked) -> dict[str, Any]:
    return {
        **_identity(one.candidate),
        "mir": one.candidate.result.mir,
        "n_samples": one.candidate.result.n_samples,
        "standard_error": one.candidate.result.uncertainty.get("standard_error"),
        "compared_with": None if one.against is None else one.against.name,
        "behind_best": None if one.behind is None else dataclasses.asdict(one.behind),
        "compared_on": one.n_samples,
        "tied_with_best": one.tied,
        "within_tolerance": one.within,
    }


def _labels(candidates: Sequence[Candidate]) -> dict[int, str]:
    """What people call a candidate: its step where all belong to one run, else its name."""
    steps = {one.step for one in candidates} - {None}
    by_step = len({one.run for one in candidates}) == 1 and len(steps) == len(candidates)
    return {id(one): f"step {one.step}" if by_step else one.name for one in candidates}
