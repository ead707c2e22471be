"""Pearson's, Spearman's and Kendall's coefficients of two columns, under many weightings of their rows at once.

A bootstrap resample, and a sample with one row left out, are the same rows with other whole weights. So each
coefficient is written once, for all of them at the same time; the tests hold it against SciPy on repeated rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Vector = NDArray[np.float64]
Weights = NDArray[np.float64]  # (rows, weightings): how often each row occurs


class WeightedColumn:
    """One column of numbers under many weightings; what several coefficients need of it is computed once.

    Args:
        values: (rows,), finite, not all the same.
        weights: (rows, weightings), whole numbers. Rows come first, so that sorting and summing go along memory.
    """

    def __init__(self, values: Vector, weights: Weights) -> None:
        self.values, self.weights = values, weights

    @cached_property
    def n(self) -> Vector:
        """Rows of every weighting, copies counted: (weightings,)."""
        total: Vector = self.weights.sum(axis=0)
        return total

    @cached_property
    def standardized(self) -> Vector:
        """The values in units of about one, (rows,)."""
        units: Vector = stats.zscore(self.values)
        return units

    @cached_property
    def _place(self) -> NDArray[np.intp]:
        """Row → place of its value among the distinct values, (rows,)."""
        return np.unique(self.values, return_inverse=True)[1]

    @cached_property
    def _weight_up_to(self) -> Weights:
        """Weight of the rows with a value or a smaller one: (distinct values, weightings), smallest value first."""
        order = np.argsort(self._place, kind="stable")
        last_of_value = np.flatnonzero(np.diff(self._place[order], append=len(order)))
        up_to: Weights = self.weights[order].cumsum(axis=0)[last_of_value]
        return up_to

    @cached_property
    def _weight_by_value(self) -> Weights:
        """(distinct values, weightings), smallest value first."""
        return np.diff(self._weight_up_to, axis=0, prepend=0)

    @cached_property
    def centred_ranks(self) -> Weights:
        """Mid-ranks minus their mean, copies of a row tied with each other: (rows, weightings)."""
        middles = self._weight_up_to - self._weight_by_value / 2
        middles -= self.n / 2
        ranks: Weights = middles[self._place]
        return ranks

    @cached_property
    def weighted_ranks(self) -> Weights:
        """Centred mid-ranks times weights: (rows, weightings)."""
        return self.weights * self.centred_ranks

    @cached_property
    def rank_spread(self) -> Vector:
        """Sum of squares of the centred mid-ranks, (weightings,); ties t take Σ(t³ − t)/12 away."""
        ties = self._weight_by_value
        spread: Vector = (self.n**3 - np.einsum("vw,vw->w", ties * ties, ties)) / 12
        return spread

    @cached_property
    def n_untied(self) -> Vector:
        """Twice the number of pairs of rows with different values, (weightings,)."""
        ties = self._weight_by_value
        pairs: Vector = self.n**2 - np.einsum("vw,vw->w", ties, ties)
        return pairs

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """Sign of row i's value minus row j's: (rows, rows)."""
        return np.sign(self.values[:, None] - self.values).astype(np.float32)


def weighted_pearson(a: WeightedColumn, b: WeightedColumn) -> Vector:
    """Pearson's r of every weighting; NaN where a column is constant."""
    x, y = a.standardized, b.standardized
    sum_x, sum_y, sum_xx, sum_yy, sum_xy = np.stack([x, y, x * x, y * y, x * y]) @ a.weights
    spread_x, spread_y = sum_xx - sum_x**2 / a.n, sum_yy - sum_y**2 / a.n
    # What rounding leaves of a constant column is some 1e-16 a row, and must not be divided by.
    spread_x, spread_y = (np.where(spread > 1e-12 * a.n, spread, np.nan) for spread in (spread_x, spread_y))
    r: Vector = (sum_xy - sum_x * sum_y / a.n) / np.sqrt(spread_x * spread_y)
    return r


def weighted_spearman(a: WeightedColumn, b: WeightedColumn) -> Vector:
    """Spearman's rho of every weighting: Pearson's r of the mid-ranks; NaN where a column is constant."""
    covariance = np.einsum("nw,nw->w", a.weighted_ranks, b.centred_ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Vector = covariance / np.sqrt(a.rank_spread * b.rank_spread)
    return rho


def weighted_kendall(a: WeightedColumn, b: WeightedColumn) -> Vector:
    """Kendall's tau-b of every weighting; copies of one row are tied with each other, so they drop out."""
    agreement = (a.signs * b.signs) @ a.weights.astype(np.float32)  # whole numbers below 2**24: exact, twice as fast
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Vector = np.einsum("nw,nw->w", agreement.astype(np.float64), a.weights) / np.sqrt(a.n_untied * b.n_untied)
    return tau
