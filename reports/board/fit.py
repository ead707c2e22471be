"""The straight line through a scatter plot, and how well the rows determine it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
MIN_ROWS = 3  # a line through two points leaves nothing to judge it by


@dataclass(frozen=True)
class Line:
    """Least-squares line y = intercept + slope · x, and what its confidence band needs.

    Attributes:
        x_low, x_high: range of the rows; the line says nothing outside it.
        x_mean: where the band is narrowest.
        x_spread: Σ (x − x_mean)².
        n: rows behind it.
        margin: half-width of the band per unit of √(1/n + (x − x_mean)² / x_spread), in units of y.
    """

    slope: float
    intercept: float
    x_low: float
    x_high: float
    x_mean: float
    x_spread: float
    n: int
    margin: float

    def at(self, x: ArrayLike) -> NDArray[np.float64]:
        """Height of the line at x, (points,)."""
        return self.intercept + self.slope * np.asarray(x, dtype=np.float64)

    def half_width(self, x: ArrayLike) -> NDArray[np.float64]:
        """Half the height of the 95 % confidence band of the line (not of single rows) at x, (points,)."""
        distance = np.asarray(x, dtype=np.float64) - self.x_mean
        width: NDArray[np.float64] = self.margin * np.sqrt(1 / self.n + distance**2 / self.x_spread)
        return width


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The least-squares line of y over x; None for fewer than three rows or where all x are the same."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < MIN_ROWS or np.ptp(a) == 0:
        return None
    centred = a - a.mean()
    spread = float(centred @ centred)
    slope = float(centred @ b) / spread
    intercept = float(b.mean()) - slope * float(a.mean())
    degrees = len(a) - 2
    deviation = float(np.sqrt(np.square(b - intercept - slope * a).sum() / degrees))
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * deviation
    return Line(slope, intercept, float(a.min()), float(a.max()), float(a.mean()), spread, len(a), margin)
