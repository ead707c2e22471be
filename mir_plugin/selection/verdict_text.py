"""The words of a verdict. Each says what its comparisons show, and no more than that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mir_plugin.metric.uncertainty import CONFIDENCE

if TYPE_CHECKING:
    from mir_plugin.selection.ranked import Ranked
    from mir_plugin.selection.select import Trend

MARGIN = "within {:g}"


@dataclass(frozen=True)
class Counts:
    """How many comparisons with the best came out how.

    Attributes:
        n_worse: shown to be more than the tolerance behind.
        n_within: shown to be within the tolerance.
        n_open: neither is shown.
        n_different: the interval of the difference excludes 0, be it large or small.
    """

    n_worse: int
    n_within: int
    n_open: int
    n_different: int

    @classmethod
    def of(cls, ranked: Iterable[Ranked]) -> Counts:
        """Of comparisons with known outcome; the best itself counts as within."""
        ranked = list(ranked)
        n_worse, n_within = sum(one.tied is False for one in ranked), sum(one.within is True for one in ranked)
        n_different = sum(one.behind is not None and one.behind.distinguishable is True for one in ranked)
        return cls(n_worse, n_within, len(ranked) - n_worse - n_within, n_different)

    @property
    def n(self) -> int:
        """All of them."""
        return self.n_worse + self.n_within + self.n_open

    def nothing_shown(self, tolerance: float, n_samples: str) -> str:
        """Why there is no choice where none is shown to be worse, and some might be."""
        if tolerance == 0:
            return f"on {n_samples} samples no other can be told from it; measure more"
        others = "the other is" if self.n == 1 else "none of the others is"
        shown = f"neither more than {tolerance:g} worse nor within {tolerance:g}"
        if self.n == 1:
            return f"on {n_samples} samples {others} shown to be {shown}; measure more"
        beyond = f"on {n_samples} samples {others} shown to be more than {tolerance:g} worse"
        return f"{beyond}, and {self.n_open} not to be {MARGIN.format(tolerance)} either; measure more"

    def apart(self, n_of_unknown_step: int, tolerance: float) -> str:
        """That the best of a run is not the only choice: some outside its row of steps may be as good."""
        groups = [
            (n_of_unknown_step, "of unknown step"),
            (self.n - n_of_unknown_step, "with worse ones in between"),
        ]
        which = " and ".join(f"{_checkpoints(n)} {where}" for n, where in groups if n)
        return f"{which} {self.may_be_as_good(tolerance)}"

    def may_be_as_good(self, tolerance: float) -> str:
        """What several that are not worse have in common, as a predicate."""
        if tolerance == 0:
            return "cannot be told from it"
        if self.n_open == 0:
            return f"{'is' if self.n == 1 else 'are'} {MARGIN.format(tolerance)} of it"
        return f"may be {MARGIN.format(tolerance)} of it"

    def reason(self, tolerance: float, n_samples: str, than: str) -> str:
        """All outcomes of the comparisons with the best, and how sure they are.

        Args:
            than: " than NAME", where it is not plain which is the best.
        """
        basis = (
            f"paired over {n_samples} samples, {CONFIDENCE:.0%} confidence"
            f"{'' if self.n == 1 else f' for all {self.n} comparisons together'}"
        )
        return f"{self._outcomes(tolerance, than, 'other checkpoint')}: {basis}."

    def _outcomes(self, tolerance: float, than: str, noun: str) -> str:
        worse = _worse(tolerance)
        open_ = f"may be {MARGIN.format(tolerance)}" if tolerance else "cannot be told from it"
        if self.n == 1:
            only = f"the {noun} "
            if self.n_worse:
                return f"{only}is {worse}{than}"
            return only + (f"is {MARGIN.format(tolerance)}" if self.n_within else open_) + self._certain()
        told = [f"{self.n_worse} of {self.n} {noun}s {_are(self.n_worse)} {worse}{than}"]
        told += [f"{self.n_within} {_are(self.n_within)} {MARGIN.format(tolerance)}"] * bool(self.n_within)
        told += [f"{self.n_open} {open_}"] * bool(self.n_open)
        return ", ".join(told) + self._certain()

    def _certain(self) -> str:
        """Differences that are certain although they do not count."""
        n = self.n_different - self.n_worse
        return f" ({n} of these {'is' if n == 1 else 'are'} certainly different from the best)" if n > 0 else ""


def standing(tied: bool | None, within: bool | None, tolerance: float) -> str:
    """What a comparison with the best shows, for the cell of a table.

    >>> standing(True, True, 0.01), standing(True, False, 0.01), standing(True, False, 0), standing(False, False, 0.01)
    ('within 0.01', 'undecided', 'not told apart', 'worse')
    """
    if tied is None:
        return "unknown"
    if within:
        return MARGIN.format(tolerance)
    if tied:
        return "undecided" if tolerance else "not told apart"
    return "worse"


def no_choice(name: str, because: str) -> str:
    """The verdict where nothing singles out one checkpoint."""
    return f"No clear choice: {name} has the lowest MIR, but {because}."


def no_choice_between_runs(name: str, counts: Counts, tolerance: float, n_runs: int, of_runs: bool) -> str:
    """The verdict where the best of other runs may be as good as the best of all."""
    n = counts.n - counts.n_worse
    as_good = Counts(0, counts.n_within, counts.n_open, 0).may_be_as_good(tolerance)
    if not of_runs:
        return no_choice(name, f"{_checkpoints(n)} {as_good}")
    which = "the best of the other run" if n_runs == 2 else f"the best of {n} other run{'s' * (n > 1)}"
    return f"No clear choice between runs: {name} has the lowest MIR, but {which} {as_good}."


def still_falling(name: str) -> str:
    """The verdict where training should go on."""
    return f"Train further: MIR still falls at {name}, the last and best; if training is over, fine-tune {name}."


def row_sentence(labels: Sequence[str], counts: Counts, tolerance: float, others: str) -> str:
    """The recommendation of the first of a row of checkpoints that are as good.

    Args:
        counts: of the row.
        others: what is worse where the row is one checkpoint.
    """
    first, last = labels[0], labels[-1]
    if len(labels) == 1:
        return f"Fine-tune {first}; {others} is {_worse(tolerance)}."
    name = first
    if first.startswith("step ") and last.startswith("step "):
        first, last = f"steps {first.removeprefix('step ')}", last.removeprefix("step ")
    if tolerance == 0:
        how = "cannot be told apart on these samples"
    else:
        how = f"{'may be' if counts.n_open else 'are'} {MARGIN.format(tolerance)} of the best"
    return f"Fine-tune {name}; {first} to {last} ({len(labels)} checkpoints) {how}."


def other_runs_sentence(n_others: int, tolerance: float) -> str:
    """That no other run has a checkpoint as good."""
    which = "the other run" if n_others == 1 else "every other run"
    return f"The best of {which} is {_worse(tolerance)}."


def trend_reason(trend: Trend, at: str, after: Counts, tolerance: float) -> str:
    """Where MIR goes along a run; empty where that is unknown.

    Args:
        at: the checkpoint at which it saturates, if it does.
        after: that one and the later ones, compared with the best.
    """
    worse = _worse(tolerance)
    if trend == "saturated":
        same = f"{'may be' if after.n_open else 'is'} {MARGIN.format(tolerance)} of the best"
        return f"MIR saturates at {at}: from there on every checkpoint {same if tolerance else 'may be the best'}."
    if trend == "still falling":
        return f"MIR has not saturated: the last checkpoint may be the best, and the one before it is {worse}."
    if trend == "rising again":
        return f"MIR has not saturated: it rises again, and the last checkpoint is {worse} than the best."
    return ""


def across_reason(counts: Counts, tolerance: float, n_samples: str) -> str:
    """How the best of each run compares with the best of all."""
    return "across runs: " + counts.reason(tolerance, n_samples, "").replace("other checkpoint", "other run", 1)


def _checkpoints(n: int) -> str:
    return f"{n} checkpoint{'s' * (n > 1)}"


def _worse(tolerance: float) -> str:
    return f"more than {tolerance:g} worse" if tolerance else "worse"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"
