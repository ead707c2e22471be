"""How far each indicator orders the checkpoints as their scores after fine-tuning do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from examples.replication.outcomes import Outcome
from mir_plugin.reports.board.weighted_coefficients import (
    Vector,
    WeightedColumn,
    Weights,
    weighted_spearman,
)

N_RESAMPLES = 1000
MIN_ROWS = 3

Verdict = Literal["yes", "no, the opposite", "undecided", "no correlation exists"]


@dataclass(frozen=True)
class Indicator:
    """Something known of a checkpoint before fine-tuning; ``useful_sign`` is that of a useful correlation."""

    name: str
    useful_sign: Literal[-1, 1]
    meaning: str


# The sample sets are those of work.SampleSets; where none is named it is the captioned digits.
INDICATORS = (
    Indicator("mir", -1, "MIR: exact root, outliers replaced, text-centric normalization"),
    Indicator("mir_prose", -1, "the same on digits with unrelated prose, as in the paper's protocol"),
    Indicator("mir_photographs", -1, "the same on photographs with prose, which the tower never saw"),
    Indicator("mir_published", -1, "Tr(ΣvΣt) in place of the root's trace, as the released script's default"),
    Indicator("mir_published_upper", -1, "no trace term"),
    Indicator("mir_no_normalization", -1, "no text-centric normalization"),
    Indicator("mir_no_outliers", -1, "outliers left in"),
    Indicator("mir_remove_outliers", -1, "outliers dropped"),
    Indicator("mir_no_normalization_no_outliers", -1, "neither normalization nor outlier handling"),
    Indicator("norm_ratio", -1, "mean length of vision over text tokens after layer 1"),
    Indicator("mmd_input", -1, "MMD² at the decoder's input"),
    Indicator("mmd_sum", -1, "MMD² summed over layers"),
    Indicator("kid_input", -1, "KID at the decoder's input"),
    Indicator("kid_sum", -1, "KID summed over layers"),
    Indicator("mutual_information_input", 1, "mutual information at the decoder's input"),
    Indicator("mutual_information_sum", 1, "mutual information summed over layers"),
    Indicator("training_loss", -1, "mean of the last ten losses of pre-training"),
    Indicator("caption_loss", -1, "nats per token of true captions; perplexity has the same order"),
    Indicator("in_context_accuracy", 1, "forced choice after two examples"),
    Indicator("score_before", 1, "the benchmark itself, before fine-tuning"),
)


@dataclass(frozen=True)
class Relation:
    """Spearman's rho between an indicator and the score; what does not exist is None.

    Attributes:
        n: checkpoints that have the indicator.
        low, high: 95 % interval of a bootstrap over runs, as checkpoints of one run are not independent.
        by_seed: rho of each seed alone.
    """

    indicator: Indicator
    n: int
    rho: float | None
    low: float | None
    high: float | None
    by_seed: tuple[float | None, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval has the useful sign."""
        if self.rho is None or self.low is None or self.high is None:
            return "no correlation exists"
        low, high = sorted((self.low * self.indicator.useful_sign, self.high * self.indicator.useful_sign))
        return "yes" if low > 0 else "no, the opposite" if high < 0 else "undecided"


def relations(outcomes: Sequence[Outcome]) -> list[Relation]:
    """Every indicator's, each over all outcomes that have it."""
    return [relation(indicator, outcomes) for indicator in INDICATORS]


def relation(indicator: Indicator, outcomes: Sequence[Outcome]) -> Relation:
    """One indicator's."""
    rows = [one for one in outcomes if indicator.name in one.indicators]
    seeds = sorted({one.seed for one in outcomes})
    low, high = _interval(indicator, rows)
    return Relation(
        indicator=indicator,
        n=len(rows),
        rho=_rho(indicator, rows),
        low=low,
        high=high,
        by_seed=tuple(_rho(indicator, [one for one in rows if one.seed == seed]) for seed in seeds),
    )


def rho(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three rows, or where a column is constant.

    >>> rho([1, 2, 3, 4], [5, 6, 9, 8]), rho([1, 1, 1], [5, 6, 9])
    (0.8, None)
    """
    if len(a) < MIN_ROWS:
        return None
    [found] = _rhos(a, b, np.ones((len(a), 1)))
    return round(float(found), 12) if np.isfinite(found) else None


def _rho(indicator: Indicator, rows: Sequence[Outcome]) -> float | None:
    return rho([one.indicators[indicator.name] for one in rows], [one.score for one in rows])


def _interval(indicator: Indicator, rows: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """Percentiles over resamples, each of as many runs as there are, drawn with all their checkpoints."""
    names = [(one.seed, one.run) for one in rows]
    runs = sorted(set(names))
    if not runs:
        return None, None
    drawn = np.random.default_rng(0).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), N_RESAMPLES)
    weights = drawn.T[[runs.index(name) for name in names]].astype(np.float64)
    found = _rhos([one.indicators[indicator.name] for one in rows], [one.score for one in rows], weights)
    found = found[np.isfinite(found)]
    if len(found) < N_RESAMPLES / 2:
        return None, None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _rhos(a: Sequence[float], b: Sequence[float], weights: Weights) -> Vector:
    """Spearman's rho of every weighting (rows, resamples); NaN where a column is constant."""
    first, second = (WeightedColumn(np.asarray(column), weights) for column in (a, b))
    return weighted_spearman(first, second)
