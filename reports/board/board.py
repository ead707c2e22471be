"""The joint report as data: what the workbook, the tables, the page and the figures all show.

``joint.join`` makes a Board; everything that draws only reads it. Values are final: scores are on the benchmark's own
scale (percent, or points for MME), a missing score is a missing key, a value that cannot be computed is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.reports.read.records import (
    Comparability,
    Picture,
    Problem,
    Run,
    Verdict,
)
from mir_plugin.results import LayerDistance, MirResult
from mir_plugin.robustness.results import Robustness

AVERAGE = "average"


@dataclass(frozen=True)
class BoardRow:
    """One checkpoint.

    Attributes:
        identity: the key that all its records share; unique on a board, stable between reports.
        name: display name; unique on a board.
        group: heading it stands under, from the configuration; empty when there is none.
        cohort: name of the Cohort its MIR belongs to; empty when it has no MIR.
        rank: 1 for the lowest MIR of its cohort, equal values share a rank; None when it has no MIR.
        mir: the value that is ranked, by the estimator that its cohort names; lower is better.
        mir_published, mir_published_upper: ends of the range of the published program's number; None when unknown.
        mir_standard_error, mir_interval: uncertainty over samples, when it was measured.
        mir_at_equal_length, length_share, fragile: as in ``MirResult``.
        n_samples: image-text pairs behind the MIR.
        scores: benchmark key → value on the benchmark's scale; a benchmark without score has no key.
        average: weighted mean of the averaged benchmarks as percentages; None unless all of them are there.
        layers: the per-layer table of the MIR measurement, layers 1…L in order; empty when the source has none.
        step: training step, from the configuration or the checkpoint's name (``checkpoint-20``, ``llava_step-20``);
            None when there is none.
        run: the training run it belongs to, where it is known by a step of one.
        finetuned: what was fine-tuned from it and has these scores; empty where they are its own.
        sources: files and run directories it was put together from.
        result: the measurement as a whole, where the source has it.
    """

    identity: str
    name: str
    group: str = ""
    cohort: str = ""
    rank: int | None = None
    mir: float | None = None
    mir_published: float | None = None
    mir_published_upper: float | None = None
    mir_standard_error: float | None = None
    mir_interval: tuple[float, float] | None = None
    mir_at_equal_length: float | None = None
    length_share: float | None = None
    fragile: tuple[str, ...] = ()
    n_samples: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None
    layers: tuple[LayerDistance, ...] = ()
    step: int | None = None
    run: str = ""
    finetuned: str = ""
    sources: tuple[str, ...] = ()
    result: MirResult | None = field(default=None, repr=False, compare=False)

    @property
    def series(self) -> str:
        """What it is drawn as one of: its group, else its training run."""
        return self.group or self.run


@dataclass(frozen=True)
class Cohort:
    """Rows whose MIR values may be compared: same estimator, samples and protocol."""

    name: str
    comparability: Comparability
    n_rows: int


@dataclass(frozen=True)
class ScoreEntry:
    """One headline score in the long form: where it came from, and whether the board uses it."""

    name: str
    identity: str
    benchmark: str
    value: float
    raw_value: float
    host: str
    task: str
    metric: str
    complete: bool
    used: bool
    n_samples: int | None = None
    date: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Coefficient:
    """A correlation coefficient with its p-value (two-sided), 95 % bootstrap interval and leave-one-out range.

    ``p_holm`` is the p-value corrected by Holm's method for all scores of the same scope.

    All are None where the coefficient does not exist (a constant column, too few rows).
    """

    value: float | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None
    leave_one_out_low: float | None = None
    leave_one_out_high: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Correlation:
    """MIR against one score, over the rows of one scope that have both. Negative is good: lower MIR, higher score.

    Attributes:
        scope: a cohort's name, or "<cohort> / <group>" for the rows of one group.
        benchmark: a benchmark key, or ``AVERAGE``.
        note: what the reader must know (few rows, a constant column, a mix of hosts); empty when all is well.
    """

    scope: str
    benchmark: str
    n: int
    pearson: Coefficient = Coefficient()
    spearman: Coefficient = Coefficient()
    kendall: Coefficient = Coefficient()
    note: str = ""


@dataclass(frozen=True)
class Board:
    """Everything a joint report shows. Rows are in reading order: largest cohort first, by rank, then rows without MIR.

    Attributes:
        benchmarks: those that any row has, in the declared order.
        weights: benchmark key → weight in the average; a benchmark that is not averaged has no key.
        average_set: name of the set that the average is over, ``own`` for one's own; empty for no average.
        average_title: what the set is, as it follows "mean of".
        absent: benchmarks of the average that no row has.
        cohorts: largest first. More than one means that ranks are not comparable across rows: ``warnings`` says so.
        warnings: sentences that must be visible wherever the ranking is shown.
        entries: headline scores in the long form, the unused ones too.
        verdicts: of the sweeps among the sources.
        pictures, robustness: what ``mir pictures`` and ``mir robustness`` left among the sources.
    """

    title: str
    rows: tuple[BoardRow, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    average_set: str = ""
    average_title: str = ""
    absent: tuple[Benchmark, ...] = ()
    cohorts: tuple[Cohort, ...] = ()
    warnings: tuple[str, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    entries: tuple[ScoreEntry, ...] = ()
    runs: tuple[Run, ...] = ()
    problems: tuple[Problem, ...] = ()
    pictures: tuple[Picture, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.rows or self.robustness or self.pictures)

    @property
    def subtitle(self) -> str:
        """How much is on the board, and which way is better, in one line."""
        n_both = sum(row.mir is not None and bool(row.scores) for row in self.rows)
        noun = "checkpoint" if len(self.rows) == 1 else "checkpoints"
        return f"{len(self.rows)} {noun}, {n_both} with both MIR and scores. Lower MIR and higher scores are better."

    def benchmark(self, key: str) -> Benchmark:
        """The declared benchmark of this key. Raises KeyError if the board does not show it."""
        for benchmark in self.benchmarks:
            if benchmark.key == key:
                return benchmark
        raise KeyError(key)

    def best(self, column: str) -> float | None:
        """Best value of a score column: a benchmark key, or ``AVERAGE``. None without values, or without direction."""
        if column == AVERAGE:
            return max((row.average for row in self.rows if row.average is not None), default=None)
        higher = self.benchmark(column).higher_is_better
        values = [row.scores[column] for row in self.rows if column in row.scores]
        return None if higher is None else (max if higher else min)(values, default=None)

    def lowest_mir(self, cohort: str) -> float | None:
        """Best MIR of a cohort; values of different cohorts are never compared."""
        return min((row.mir for row in self.rows if row.cohort == cohort and row.mir is not None), default=None)
