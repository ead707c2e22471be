"""One set of comparisons: measured checkpoints, each with the one that has the lowest MIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mir_plugin.measurement.comparable import on_common_samples
from mir_plugin.metric.uncertainty import CONFIDENCE
from mir_plugin.results import MirResult
from mir_plugin.selection.comparison import Difference, mir_difference
from mir_plugin.selection.spending import nominal_levels


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
        against: the lowest of its run, or for that one the lowest of all runs; None for the lowest of all. With
            ``--precision`` one that is worse may have been compared with what was lowest on fewer samples.
        behind: its MIR minus that of ``against``, and the interval of that.
        tied: whether it is not shown to be more than the tolerance behind; None where that is unknown.
        within: whether it is shown to be within the tolerance; None where that is unknown.
        n_samples: on which it was compared; of the lowest, all it has.
        mir: its MIR on the samples of the lowest; where it has fewer, that of the lowest and the difference on these.
    """

    candidate: Candidate
    n_samples: int
    mir: float
    against: Candidate | None = None
    behind: Difference | None = None
    tied: bool | None = True
    within: bool | None = True


def compared(candidates: Sequence[Candidate], tolerance: float) -> tuple[Ranked, ...]:
    """All candidates, best first; intervals hold for all of them, and all looks, together."""
    worse = _worse_at_a_look(candidates, tolerance)
    left = [one for one in candidates if id(one) not in worse]
    most = max(one.result.n_samples for one in left) if _planned(candidates) else 0
    best = min((one for one in left if one.result.n_samples >= most), key=lambda one: one.result.mir)
    ranked = [Ranked(best, best.result.n_samples, best.result.mir)]
    for other in candidates:
        if other is not best:
            now = _behind(best, other, on_common_samples(best.result, other.result), candidates, tolerance)
            ranked.append(replace(worse[id(other)], mir=now.mir) if id(other) in worse else now)
    return (ranked[0], *sorted(ranked[1:], key=lambda one: one.mir))


def _worse_at_a_look(candidates: Sequence[Candidate], tolerance: float) -> dict[int, Ranked]:
    """Those that were shown, at some look, to be worse than the lowest of that look, by their ids."""
    worse: dict[int, Ranked] = {}
    for n in _planned(candidates):
        here = [one for one in candidates if n in one.result.numbers_of_samples and id(one) not in worse]
        if len(here) < 2:
            continue
        lowest = min(here, key=lambda one: one.result.at(n).mir)
        for other in here:
            if other is not lowest:
                pair = lowest.result.at(n), other.result.at(n)
                ranked = _behind(lowest, other, pair, candidates, tolerance)
                if ranked.tied is False:
                    worse[id(other)] = ranked
    return worse


def _behind(
    best: Candidate,
    other: Candidate,
    pair: tuple[MirResult, MirResult],
    candidates: Sequence[Candidate],
    tolerance: float,
) -> Ranked:
    """One comparison, of the results of a pair, among those of all candidates."""
    n_samples = pair[1].n_samples
    behind = mir_difference(*pair, *_confidences(n_samples, len(candidates) - 1, _planned(candidates)))
    # What fewer samples do to MIR they do to both.
    mir = pair[1].mir + (best.result.mir - pair[0].mir)
    return Ranked(other, n_samples, mir, best, behind, behind.may_be_within(tolerance), behind.is_within(tolerance))


def _planned(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """At which numbers of samples measuring could have stopped; none without ``--precision``."""
    return max((one.result.planned for one in candidates), key=len)


def _confidences(n_samples: int, n_comparisons: int, planned: Sequence[int]) -> tuple[float, float | None]:
    """Of the interval of a difference, and of that of the equivalence test."""
    alpha = (1 - CONFIDENCE) / n_comparisons
    if n_samples not in planned:
        return 1 - alpha, None
    look = planned.index(n_samples)
    return 1 - nominal_levels(alpha, planned)[look], 1 - nominal_levels(2 * alpha, planned)[look]
