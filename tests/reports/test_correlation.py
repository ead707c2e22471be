"""Correlations against SciPy and NumPy, and the cases without one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mir_plugin.reports.board.correlation import correlate, with_holm
from mir_plugin.reports.board.weighted_coefficients import (
    WeightedColumn,
    weighted_kendall,
    weighted_pearson,
    weighted_spearman,
)

RANDOM = np.random.default_rng(3)
TIED = RANDOM.integers(0, 6, size=(2, 40)).astype(float)
UNTIED = RANDOM.normal(size=(2, 40))
SCIPY = {weighted_pearson: stats.pearsonr, weighted_spearman: stats.spearmanr, weighted_kendall: stats.kendalltau}


@pytest.mark.parametrize(("a", "b"), [TIED, UNTIED, (TIED[0], UNTIED[1])], ids=["tied", "untied", "mixed"])
@pytest.mark.parametrize("weighted", SCIPY)
def test_weights_are_repetitions_of_rows(weighted, a, b):
    weights = RANDOM.multinomial(40, np.full(40, 1 / 40), size=6).astype(float)
    repeated = [SCIPY[weighted](np.repeat(a, w.astype(int)), np.repeat(b, w.astype(int)))[0] for w in weights]
    found = weighted(WeightedColumn(a, weights.T), WeightedColumn(b, weights.T))
    np.testing.assert_allclose(found, repeated, atol=1e-12)


def test_values_are_those_of_scipy():
    found = correlate("A", "x", *TIED)
    assert found.pearson.value == pytest.approx(stats.pearsonr(*TIED)[0])
    assert found.spearman.value == pytest.approx(stats.spearmanr(*TIED)[0])
    assert found.kendall.value == pytest.approx(stats.kendalltau(*TIED)[0])
    assert found.kendall.p_value == pytest.approx(stats.kendalltau(*TIED)[1])


def test_spearmans_p_is_exact_with_few_rows():
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 1.0, 2.0]
    exact = stats.permutation_test(
        (a,), lambda x: stats.spearmanr(x, b)[0], permutation_type="pairings", n_resamples=np.inf
    )
    assert correlate("A", "x", a, b).spearman.p_value == pytest.approx(exact.pvalue)


def test_the_leave_one_out_range_is_that_of_leaving_each_row_out():
    a, b = TIED
    without = [stats.pearsonr(np.delete(a, i), np.delete(b, i))[0] for i in range(len(a))]
    found = correlate("A", "x", a, b).pearson
    assert (found.leave_one_out_low, found.leave_one_out_high) == pytest.approx((min(without), max(without)))


def test_the_interval_covers_the_value_and_does_not_change_between_calls():
    first, second = correlate("A", "x", *TIED), correlate("A", "x", *TIED)
    assert first == second
    assert first.pearson.low < first.pearson.value < first.pearson.high


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]), ([1, 2, 3, 4, 5], [7, 7, 7, 7, 7])])
def test_a_constant_column_has_no_coefficient_but_a_note(x, y):
    found = correlate("A", "x", x, y)
    assert found.pearson.value is found.kendall.low is found.spearman.p_value is None
    assert "is the same for all" in found.note


def test_few_rows_are_noted_and_get_no_interval():
    found = correlate("A", "x", [1, 2, 3, 4], [4, 3, 1, 2])
    assert "too few" in found.note
    assert found.pearson.value is not None
    assert found.pearson.low is None


def test_two_rows_have_no_correlation():
    found = correlate("A", "x", [1, 2], [2, 1])
    assert (found.n, found.pearson.value) == (2, None)
    assert "n = 2" in found.note


def test_a_row_that_carries_the_whole_variation_leaves_no_nan():
    found = correlate("A", "x", [1, 1, 1, 1, 1, 9], [1, 2, 3, 4, 5, 6])
    numbers = [getattr(c, f) for c in (found.pearson, found.spearman, found.kendall) for f in vars(c)]
    assert all(number is None or np.isfinite(number) for number in numbers)


def test_p_values_of_one_scope_are_corrected_for_each_other_and_not_for_other_scopes():
    x = list(range(10))
    noisy = [3, 1, 0, 2, 6, 4, 5, 9, 7, 8]
    first, second, other = with_holm(
        [correlate("A", "a", x, x), correlate("A", "b", x, noisy), correlate("B", "a", x, noisy)]
    )
    assert second.spearman.p_holm == second.spearman.p_value == other.spearman.p_holm
    assert first.pearson.p_holm == pytest.approx(2 * first.pearson.p_value)
