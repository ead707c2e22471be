"""Which checkpoint to fine-tune: ranking, ties, saturation and a recommendation, from results alone.

All comparisons are paired over the samples (``mir_plugin.selection.comparison``). The lowest MIR is compared with all
others, and an early checkpoint with all later ones, so intervals are widened until the confidence holds for all
comparisons together (Bonferroni). Then the truly best checkpoint is, with that confidence, among those that cannot be
told from the one with the lowest value, which may be lowest by luck.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.metric.uncertainty import CONFIDENCE, has_uncertainty
from mir_plugin.results import MirResult
from mir_plugin.selection.comparison import Difference, mir_difference

Outcome = Literal["clear", "undecided", "still falling"]
Trend = Literal["saturated", "still falling", "rising again", "unknown"]


@dataclass(frozen=True)
class Candidate:
    """A measured checkpoint: its unique name, the run and step it belongs to, its result."""

    name: str
    run: str
    step: int | None
    result: MirResult


@dataclass(frozen=True)
class Ranked:
    """A candidate in its place.

    Attributes:
        behind: its MIR minus the best one's, and the interval of that; None for the best.
        tied: whether it cannot be told from the best; None where that is unknown.
    """

    candidate: Candidate
    behind: Difference | None
    tied: bool | None


@dataclass(frozen=True)
class RunTrend:
    """Where MIR goes along one run.

    Attributes:
        run: as in ``Candidate``.
        trend: "saturated" if some checkpoint but the last is within the noise of all later ones; else what the last
            two do; "unknown" without uncertainties.
        saturated_at: the first such checkpoint.
    """

    run: str
    trend: Trend
    saturated_at: Candidate | None


@dataclass(frozen=True)
class Selection:
    """The verdict.

    Attributes:
        ranking: best first.
        trends: of every run with two or more checkpoints of known step.
        recommended: what to fine-tune, or what comes closest to a choice where ``outcome`` is "undecided".
        outcome: "clear"; "undecided", where the measurements do not single out one checkpoint; "still falling", where
            the best is the last of its run and MIR has not settled.
        sentence: the recommendation.
        reasons: what it rests on.
        warnings: what to know before trusting it.
    """

    ranking: tuple[Ranked, ...]
    trends: tuple[RunTrend, ...]
    recommended: Candidate
    outcome: Outcome
    sentence: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; candidates by name."""
        return {
            "outcome": self.outcome,
            "recommended": _identity(self.recommended),
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "confidence": CONFIDENCE,
            "ranking": [
                {
                    **_identity(one.candidate),
                    "mir": one.candidate.result.mir,
                    "standard_error": one.candidate.result.uncertainty.get("standard_error"),
                    "behind_best": None if one.behind is None else dataclasses.asdict(one.behind),
                    "tied_with_best": one.tied,
                }
                for one in self.ranking
            ],
            "runs": [
                {
                    "run": trend.run,
                    "trend": trend.trend,
                    "saturated_at": None if trend.saturated_at is None else _identity(trend.saturated_at),
                }
                for trend in self.trends
            ],
        }


def select(candidates: Sequence[Candidate], *, tolerance: float = 0.0, anyway: bool = False) -> Selection:
    """Rank candidates and recommend one.

    Args:
        tolerance: differences of MIR up to this do not matter to the user, however well they are measured.
        anyway: go on although samples or protocol differ; a warning says so.
    Raises:
        MirError: if there is no candidate, or if samples or protocol differ and ``anyway`` is not set.
    """
    if not candidates:
        raise MirError("no result to select from; name mir.json files, or folders that hold them.")
    warnings = _differences_in_protocol(candidates, anyway)
    if not all(has_uncertainty(one.result.uncertainty) for one in candidates):
        warnings.append("some results have no uncertainty (--no-uncertainty, or one sample): ranked by value alone.")
    ordered = sorted(candidates, key=lambda one: one.result.mir)
    ranking = _ranked(ordered, tolerance)
    by_run = _by_run(candidates)
    trends = tuple(_trend(run, members, tolerance) for run, members in by_run.items() if len(members) > 1)
    recommended, outcome, because = _recommendation(ranking, by_run, trends, tolerance)
    label = _labels(candidates)
    return Selection(
        ranking=ranking,
        trends=trends,
        recommended=recommended,
        outcome=outcome,
        sentence=_sentence(ranking, recommended, outcome, because, by_run, label),
        reasons=tuple(_reasons(ranking, trends, tolerance, label)),
        warnings=tuple(warnings),
    )


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


def _ranked(ordered: Sequence[Candidate], tolerance: float) -> tuple[Ranked, ...]:
    best = ordered[0]
    confidence = _jointly(len(ordered) - 1)
    behind = [mir_difference(best.result, other.result, confidence) for other in ordered[1:]]
    others = [
        Ranked(other, difference, _tied(difference, tolerance))
        for other, difference in zip(ordered[1:], behind, strict=True)
    ]
    return (Ranked(best, None, True), *others)


def _trend(run: str, members: Sequence[Candidate], tolerance: float) -> RunTrend:
    """Members are in the order of their steps."""
    for index, early in enumerate(members[:-1]):
        later = members[index + 1 :]
        confidence = _jointly(len(later))
        tied = [_tied(mir_difference(early.result, one.result, confidence), tolerance) for one in later]
        if None in tied:
            return RunTrend(run, "unknown", None)
        if all(tied):
            return RunTrend(run, "saturated", early)
    before, last = members[-2:]
    return RunTrend(run, "still falling" if last.result.mir < before.result.mir else "rising again", None)


def _recommendation(
    ranking: Sequence[Ranked],
    by_run: Mapping[str, Sequence[Candidate]],
    trends: Sequence[RunTrend],
    tolerance: float,
) -> tuple[Candidate, Outcome, str]:
    """What to take, how sure that is, and the reservation if there is one."""
    best = ranking[0].candidate
    if len(ranking) == 1:
        return best, "undecided", "there is nothing to compare it with"
    if any(one.tied is None for one in ranking):
        return best, "undecided", "without uncertainties the error is unknown"
    if all(one.tied for one in ranking) and not all(_alike(one.behind, tolerance) for one in ranking):
        return best, "undecided", f"on {best.result.n_samples} samples no other can be told from it; measure more"
    row = _tied_around(best, ranking, by_run)
    in_row = {id(one) for one in row}
    apart = [one.candidate for one in ranking if one.tied and id(one.candidate) not in in_row]
    if apart:
        return best, "undecided", _why_not_these(best, apart)
    trend = next((one.trend for one in trends if one.run == best.run), None)
    if trend == "still falling" and best is by_run[best.run][-1]:
        return best, "still falling", ""
    return row[0], "clear", ""


def _why_not_these(best: Candidate, apart: Sequence[Candidate]) -> str:
    """That the best is not the only choice: checkpoints outside its row of steps cannot be told from it either."""

    def where(one: Candidate) -> str:
        if one.run != best.run:
            return "of other runs"
        return "of unknown step" if None in (one.step, best.step) else "with distinguishably worse ones in between"

    numbers = Counter(map(where, apart))
    groups = [f"{n} checkpoint{'s' * (n > 1)} {which}" for which, n in numbers.items()]
    return f"{' and '.join(groups)} cannot be told from it"


def _tied_around(
    best: Candidate, ranking: Sequence[Ranked], by_run: Mapping[str, Sequence[Candidate]]
) -> Sequence[Candidate]:
    """The unbroken row of steps around the best that cannot be told from it; the best alone if its step is unknown."""
    if best.step is None:
        return (best,)
    members = by_run[best.run]
    tied = {id(one.candidate) for one in ranking if one.tied}
    first = last = members.index(best)
    while first > 0 and id(members[first - 1]) in tied:
        first -= 1
    while last + 1 < len(members) and id(members[last + 1]) in tied:
        last += 1
    return members[first : last + 1]


def _by_run(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of known step, run by run in the order of their steps."""
    by_run: dict[str, list[Candidate]] = {}
    for one in sorted((one for one in candidates if one.step is not None), key=lambda one: one.step or 0):
        by_run.setdefault(one.run, []).append(one)
    return by_run


def _tied(difference: Difference, tolerance: float) -> bool | None:
    if difference.low is None or difference.high is None:
        return None
    return difference.low <= tolerance and difference.high >= -tolerance


def _alike(difference: Difference | None, tolerance: float) -> bool:
    """Whether it is certain not to matter: more samples would not tell more. None is the best's, from itself."""
    if difference is None or difference.low is None or difference.high is None:
        return difference is None
    return tolerance > 0 and difference.low >= -tolerance and difference.high <= tolerance


def _jointly(n_comparisons: int) -> float:
    """Confidence that each of n comparisons needs for all of them to have the usual one together."""
    return 1 - (1 - CONFIDENCE) / max(1, n_comparisons)


def _identity(one: Candidate) -> dict[str, Any]:
    return {"name": one.name, "run": one.run, "step": one.step, "checkpoint": one.result.checkpoint}


def _labels(candidates: Sequence[Candidate]) -> dict[int, str]:
    """What people call a candidate: its step where all belong to one run, else its name."""
    by_step = len({one.run for one in candidates}) == 1 and all(one.step is not None for one in candidates)
    return {id(one): f"step {one.step}" if by_step else one.name for one in candidates}


def _sentence(
    ranking: Sequence[Ranked],
    recommended: Candidate,
    outcome: Outcome,
    because: str,
    by_run: Mapping[str, Sequence[Candidate]],
    label: Mapping[int, str],
) -> str:
    name = label[id(recommended)]
    if outcome == "undecided":
        return f"No clear choice: {name} has the lowest MIR, but {because}."
    if outcome == "still falling":
        return f"Train further: MIR still falls at {name}, the last and best; if training is over, fine-tune {name}."
    best = ranking[0].candidate
    row = _tied_around(best, ranking, by_run)
    if len(row) == 1:
        return f"Fine-tune {name}; every other checkpoint is distinguishably worse."
    first, last = label[id(row[0])], label[id(row[-1])]
    if first.startswith("step ") and last.startswith("step "):
        first, last = f"steps {first.removeprefix('step ')}", last.removeprefix("step ")
    return f"Fine-tune {name}; {first} to {last} ({len(row)} checkpoints) are indistinguishable."


def _reasons(
    ranking: Sequence[Ranked], trends: Sequence[RunTrend], tolerance: float, label: Mapping[int, str]
) -> list[str]:
    best, others = ranking[0].candidate, ranking[1:]
    reasons = [f"{label[id(best)]} has the lowest MIR, {best.result.mir:.4f}."]
    known = [one for one in others if one.tied is not None]
    if known:
        n_worse = sum(one.tied is False for one in known)
        beyond = f" by more than {tolerance:g}" if tolerance else ""
        reasons.append(
            f"{n_worse} of {len(known)} others are distinguishably worse{beyond}: paired over "
            f"{best.result.n_samples} samples, {CONFIDENCE:.0%} confidence for all comparisons together."
        )
    for trend in trends:
        where = f"{trend.run}: " if len(trends) > 1 else ""
        if trend.saturated_at is not None:
            apart = (
                f"is distinguishably more than {tolerance:g} away"
                if tolerance
                else "differs from it by more than the noise"
            )
            reasons.append(f"{where}MIR saturates at {label[id(trend.saturated_at)]}: no later checkpoint {apart}.")
        elif trend.trend == "still falling":
            reasons.append(
                f"{where}MIR has not saturated: the last checkpoint is distinguishably below the one before."
            )
        elif trend.trend == "rising again":
            reasons.append(
                f"{where}MIR has not saturated: the last checkpoint is distinguishably above the one before."
            )
    return reasons
