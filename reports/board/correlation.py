"""Pearson, Spearman and Kendall correlations with p-values, bootstrap intervals and leave-one-out ranges.

SciPy gives the coefficients and p-values; ``weighted_coefficients`` those of all resamples.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mir_plugin.reports.board.board import Coefficient, Correlation
from mir_plugin.reports.board.weighted_coefficients import (
    Vector,
    WeightedColumn,
    Weights,
    weighted_kendall,
    weighted_pearson,
    weighted_spearman,
)

MIN_ROWS = 3  # two points always lie on a line
FEW_ROWS = 5
EXACT_UP_TO = 8  # rows; 8! orders are quick to try
N_RESAMPLES = 1000
CONFIDENCE = 0.95

Weighted = Callable[[WeightedColumn, WeightedColumn], Vector]


def correlate(scope: str, benchmark: str, x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation:
    """Correlation of two columns without gaps; what does not exist stays None, and the note says why."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    note = _note(a, b)
    if len(a) < MIN_ROWS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(scope, benchmark, len(a), note=note)
    reweighted_a, reweighted_b = _reweighted(tuple(a), seed), WeightedColumn(b, _weightings(len(b), seed))

    def coefficient(tested: tuple[float, float], weighted: Weighted) -> Coefficient:
        return _coefficient(tested, weighted(reweighted_a, reweighted_b), len(a))

    return Correlation(
        scope,
        benchmark,
        len(a),
        pearson=coefficient(stats.pearsonr(a, b), weighted_pearson),
        spearman=coefficient(_spearman(a, b), weighted_spearman),
        kendall=coefficient(stats.kendalltau(a, b), weighted_kendall),
        note=note,
    )


def with_holm(correlations: Sequence[Correlation]) -> list[Correlation]:
    """The same with p-values corrected for how many scores of one scope stand side by side."""
    corrected = list(correlations)
    for scope in dict.fromkeys(one.scope for one in correlations):
        for name in ("pearson", "spearman", "kendall"):
            places = [
                i for i, one in enumerate(corrected) if one.scope == scope and getattr(one, name).p_value is not None
            ]
            values = holm([getattr(corrected[i], name).p_value for i in places])
            for i, value in zip(places, values, strict=True):
                coefficient = replace(getattr(corrected[i], name), p_holm=value)
                corrected[i] = replace(corrected[i], **{name: coefficient})
    return corrected


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order of the arguments.

    >>> [round(p, 9) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _note(a: Vector, b: Vector) -> str:
    n = len(a)
    if n < MIN_ROWS:
        return f"n = {n}: at least {MIN_ROWS} checkpoints are needed for a correlation"
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return ("MIR" if np.ptp(a) == 0 else "The score") + " is the same for all checkpoints: no correlation exists"
    return f"n = {n}: too few checkpoints for a conclusion; no interval" if n < FEW_ROWS else ""


def _spearman(a: Vector, b: Vector) -> tuple[float, float]:
    """Rho and its p-value; with few rows SciPy's t approximation calls any perfect order p = 0, so p is exact there."""
    rho, p_value = stats.spearmanr(a, b)
    if len(a) > EXACT_UP_TO:
        return rho, p_value
    ranks_a, ranks_b = stats.rankdata(a) - (len(a) + 1) / 2, stats.rankdata(b) - (len(b) + 1) / 2
    sums = np.abs(ranks_a[_orders(len(a))] @ ranks_b)
    return rho, float(np.mean(sums >= abs(ranks_a @ ranks_b) - 1e-9))


@functools.cache
def _orders(n: int) -> NDArray[np.int64]:
    """All orders of n things, one per row."""
    return np.array(list(itertools.permutations(range(n))))


@functools.lru_cache(maxsize=1)
def _reweighted(values: tuple[float, ...], seed: int) -> WeightedColumn:
    """The column under all weightings; kept, as a report holds the same MIR values against one score after another."""
    return WeightedColumn(np.array(values), _weightings(len(values), seed))


@functools.lru_cache(maxsize=1)
def _weightings(n: int, seed: int) -> Weights:
    """Every row left out once, then the bootstrap resamples if there are enough rows: (n, weightings)."""
    left_out = 1.0 - np.eye(n)
    if n < FEW_ROWS:
        return left_out
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    return np.concatenate([left_out, draws.T], axis=1)


def _coefficient(tested: tuple[float, float], reweighted: Vector, n: int) -> Coefficient:
    value, p_value = tested
    left_out, resampled = reweighted[:n], reweighted[n:]
    left_out = left_out[np.isfinite(left_out)]
    low, high = _interval(resampled)
    return Coefficient(
        float(value),
        float(p_value) if np.isfinite(p_value) else None,
        low,
        high,
        float(left_out.min()) if len(left_out) else None,
        float(left_out.max()) if len(left_out) else None,
    )


def _interval(values: Vector) -> tuple[float | None, float | None]:
    """Percentile interval; resamples in which a column is constant have no coefficient and do not count."""
    values = values[np.isfinite(values)]
    if len(values) < N_RESAMPLES / 2:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
