"""Which checkpoints of a sweep need more samples before the verdict is what all samples would give."""

from __future__ import annotations

from collections.abc import Sequence

from mir_plugin.errors import MirError
from mir_plugin.measurement.growing import NestedSamples
from mir_plugin.selection.ranked import Candidate, Ranked
from mir_plugin.selection.select import select
from mir_plugin.selection.sweep import SweepEntry


def further_looks(entries: Sequence[SweepEntry], nested: NestedSamples, tolerance: float) -> dict[str, int]:
    """Name → number of samples to measure next, of those that are not decided and not precise enough.

    A comparison is decided when it is shown to be beyond the tolerance or within it. Both of its checkpoints go on
    together; one that lags behind catches up first. One alone, with nothing to compare it with, goes on until it is
    precise.
    """
    candidates = [Candidate(one.name, one.run, one.step, one.result) for one in entries if one.result]
    if not candidates:
        return {}
    try:
        selection = select(candidates, tolerance=tolerance)
    except MirError:  # not comparable: there will be no verdict
        return {}
    if len(candidates) == 1:
        pairs = [(candidates[0], candidates[0])]
    else:
        sets = [run.ranking for run in selection.runs] + [[run.best for run in selection.runs]]
        pairs = [(one.candidate, one.against) for ranking in sets for one in ranking if one.against and _is_open(one)]
    able = {one.name for one in entries if one.asked and one.state in ("measured", "kept")}
    wanted = {}
    for pair in pairs:
        if able.issuperset(one.name for one in pair):
            least = min(one.result.n_samples for one in pair)
            for one in pair:
                if one.result.n_samples == least < nested.planned[-1] and not nested.precise(one.result):
                    wanted[one.name] = nested.next_after(one.result)
    return wanted


def _is_open(one: Ranked) -> bool:
    return one.tied is not False and not one.within
