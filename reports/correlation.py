"""Pearson, Spearman and Kendall correlations with p-values, bootstrap intervals and leave-one-out ranges.

A bootstrap resample, and a sample with one row left out, are the same rows with other weights. So all three
coefficients are written once for integer weights, for all resamples at the same time; SciPy gives the p-values, and
the tests hold the two against each other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mir_plugin.reports.board import Coefficient, Correlation

MIN_ROWS = 3  # two points always lie on a line
FEW_ROWS = 5
EXACT_UP_TO = 8  # rows; 8! orders are quick to try
N_RESAMPLES = 1000
CONFIDENCE = 0.95

Vector = NDArray[np.float64]
Weights = NDArray[np.float64]  # (resamples, rows): how often each row occurs
Weighted = Callable[[Vector, Vector, Weights], Vector]


def correlate(scope: str, benchmark: str, x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation:
    """Correlation of two columns without gaps; what does not exist stays None, and the note says why."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    note = _note(a, b)
    if len(a) < MIN_ROWS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(scope, benchmark, len(a), note=note)
    resamples = _resamples(len(a), seed) if len(a) >= FEW_ROWS else None
    return Correlation(
        scope,
        benchmark,
        len(a),
        pearson=_coefficient(stats.pearsonr(a, b), weighted_pearson, a, b, resamples),
        spearman=_coefficient(_spearman(a, b), weighted_spearman, a, b, resamples),
        kendall=_coefficient(stats.kendalltau(a, b), weighted_kendall, a, b, resamples),
        note=note,
    )


def _note(a: Vector, b: Vector) -> str:
    n = len(a)
    if n < MIN_ROWS:
        return f"n = {n}: no correlation below {MIN_ROWS} rows"
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return ("MIR" if np.ptp(a) == 0 else "The score") + " is the same in all rows: no correlation exists"
    return f"n = {n}: too few rows for a conclusion; no interval" if n < FEW_ROWS else ""


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


def _coefficient(
    tested: tuple[float, float], weighted: Weighted, a: Vector, b: Vector, resamples: Weights | None
) -> Coefficient:
    value, p_value = tested
    low, high = _interval(weighted(a, b, resamples)) if resamples is not None else (None, None)
    left_out = weighted(a, b, 1.0 - np.eye(len(a)))
    left_out = left_out[np.isfinite(left_out)]
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


@functools.lru_cache(maxsize=4)
def _resamples(n: int, seed: int) -> Weights:
    random = np.random.default_rng(seed)
    return random.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)


def weighted_pearson(a: Vector, b: Vector, weights: Weights) -> Vector:
    """Pearson's r of every weighting; NaN where a column is constant."""
    a, b = stats.zscore(a), stats.zscore(b)
    return _product_moment(weights @ np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1))


def weighted_spearman(a: Vector, b: Vector, weights: Weights) -> Vector:
    """Spearman's rho of every weighting: Pearson's r of the mid-ranks within the weighted rows."""
    middle = weights.sum(axis=1, keepdims=True) / 2
    ranks_a, ranks_b = _mid_ranks(a, weights) / middle - 1, _mid_ranks(b, weights) / middle - 1
    weighted_a, weighted_b = weights * ranks_a, weights * ranks_b
    sums = [
        weights.sum(axis=1),
        weighted_a.sum(axis=1),
        weighted_b.sum(axis=1),
        np.einsum("rn,rn->r", weighted_a, ranks_a),
        np.einsum("rn,rn->r", weighted_b, ranks_b),
        np.einsum("rn,rn->r", weighted_a, ranks_b),
    ]
    return _product_moment(np.stack(sums, axis=1))


def weighted_kendall(a: Vector, b: Vector, weights: Weights) -> Vector:
    """Kendall's tau-b of every weighting; copies of one row are tied with each other, so they drop out."""
    signs = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    exact = weights.astype(np.float32)  # whole numbers below 2**24: exact, and twice as fast
    agreement = ((exact @ signs.astype(np.float32)).astype(np.float64) * weights).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Vector = agreement / np.sqrt(_untied_pairs(a, weights) * _untied_pairs(b, weights))
    return tau


def _untied_pairs(values: Vector, weights: Weights) -> Vector:
    """Twice the number of pairs of rows with different values, in every weighting."""
    pairs: Vector = weights.sum(axis=1) ** 2 - (_weights_by_value(values, weights) ** 2).sum(axis=1)
    return pairs


def _weights_by_value(values: Vector, weights: Weights) -> Vector:
    """Total weight of every distinct value, smallest value first: (resamples, distinct values)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    totals: Vector = np.add.reduceat(weights[:, order], starts, axis=1)
    return totals


def _product_moment(sums: Vector) -> Vector:
    """Pearson's r from Σw, Σwa, Σwb, Σwa², Σwb², Σwab, one row per weighting, of columns in units of about one."""
    total, a, b, aa, bb, ab = sums.T
    spread_a, spread_b = aa - a * a / total, bb - b * b / total
    # What rounding leaves of a constant column is some 1e-16 a row, and must not be divided by.
    spread_a, spread_b = (np.where(spread > 1e-12 * total, spread, np.nan) for spread in (spread_a, spread_b))
    r: Vector = (ab - a * b / total) / np.sqrt(spread_a * spread_b)
    return r


def _mid_ranks(values: Vector, weights: Weights) -> Vector:
    totals = _weights_by_value(values, weights)
    middles = totals.cumsum(axis=1) - totals / 2 + 0.5
    _, places = np.unique(values, return_inverse=True)
    ranks: Vector = middles[:, places]
    return ranks
