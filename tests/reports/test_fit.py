"""The fitted line and its band."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mir_plugin.reports.board.fit import fit_line

X = [2.4, 2.7, 2.9, 3.2, 3.5, 3.9]
Y = [61.0, 60.5, 58.0, 59.0, 55.0, 54.5]


def test_the_line_is_the_one_that_scipy_fits():
    line, expected = fit_line(X, Y), stats.linregress(X, Y)
    assert line.slope == pytest.approx(expected.slope, rel=1e-12)
    assert line.intercept == pytest.approx(expected.intercept, rel=1e-12)
    assert (line.x_low, line.x_high, line.n) == (2.4, 3.9, 6)


def test_the_band_follows_from_the_covariance_of_the_coefficients():
    # An independent way to the same band: Var(a + bx) = [x 1] C [x 1]' with NumPy's covariance C of the coefficients.
    _, covariance = np.polyfit(X, Y, 1, cov=True)
    at = np.array([2.4, 3.0, 3.9])
    design = np.stack([at, np.ones_like(at)], axis=1)
    deviation = np.sqrt(np.einsum("ni,ij,nj->n", design, covariance, design))
    np.testing.assert_allclose(fit_line(X, Y).half_width(at), stats.t.ppf(0.975, 4) * deviation, rtol=1e-9)


def test_the_band_covers_the_true_line_in_95_of_100_samples():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        line = fit_line(X, (50 - 3 * np.array(X) + random.normal(size=len(X))).tolist())
        covered.append(abs(line.at(3.0) - 41) < line.half_width(3.0))
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 2000))  # three standard errors


@pytest.mark.parametrize("x", [[1.0, 2.0], [1.0, 1.0, 1.0], []])
def test_no_line_through_two_points_or_one_place(x):
    assert fit_line(x, x) is None
