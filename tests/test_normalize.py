from __future__ import annotations

import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.metric.normalize import (
    coordinate_median,
    outlier_rows,
    remove_outliers,
    replace_outliers,
    row_norms,
    scale_from_norms,
    text_centric_scale,
)


def test_scaled_text_has_unit_mean_norm() -> None:
    text = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-6.0, 8.0]])
    assert row_norms(text * text_centric_scale(text)).mean().item() == pytest.approx(1)
    assert scale_from_norms(row_norms(text)) == text_centric_scale(text)


@pytest.mark.parametrize(("text", "message"), [(torch.zeros(3, 2), "norm zero"), (torch.zeros(0, 2), "no text token")])
def test_text_without_length_is_refused(text: torch.Tensor, message: str) -> None:
    with pytest.raises(MirError, match=message):
        text_centric_scale(text)


def test_outliers_are_measured_from_the_lower_median_with_the_unbiased_deviation() -> None:
    norms = torch.tensor([1.0, 2.0, 3.0, 10.0])  # lower median 2, unbiased std 4.0825: threshold at 2 + 1.9 * 4.0825
    assert outlier_rows(norms, n_sigma=1.9).tolist() == [False, False, False, True]
    # From the upper median (3) the same row is inside; so it is with the biased deviation of the other threshold.
    assert outlier_rows(norms, n_sigma=1.97).tolist() == [False] * 4
    assert 1.9 * norms.std().item() > 10 - 3


def test_outliers_lie_on_both_sides_and_equal_norms_have_none() -> None:
    norms = torch.tensor([10.0] * 20 + [1.0])
    assert outlier_rows(norms, n_sigma=3.0).nonzero().flatten().tolist() == [20]
    assert not outlier_rows(torch.full((5,), 2.0), n_sigma=3.0).any()  # deviation 0, distance 0: not further away


def test_a_part_of_the_tokens_is_judged_among_all() -> None:
    everything = torch.tensor([1.0] * 20 + [9.0])
    part = everything[19:]
    assert outlier_rows(part, n_sigma=3.0, among=everything).tolist() == [False, True]
    assert outlier_rows(part, n_sigma=3.0).tolist() == [False, False]


def test_a_single_token_is_no_outlier() -> None:
    assert outlier_rows(torch.tensor([4.0]), n_sigma=3.0).tolist() == [False]


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (7, 3)])
def test_taking_the_median_leaves_the_features_in_their_order(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = features.clone()
    coordinate_median(features)
    assert torch.equal(features, before)


def test_the_coordinate_median_is_the_lower_one_of_each_column() -> None:
    features = torch.randn(10, 600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coordinate_median(features), features.sort(dim=0).values[4])


def test_an_outlier_is_replaced_by_the_median_or_dropped() -> None:
    tokens = torch.randn(21, 4, generator=torch.Generator().manual_seed(2))
    tokens[20] *= 100
    before = tokens.clone()
    replaced = replace_outliers(tokens)
    assert torch.equal(replaced[:20], tokens[:20])
    assert torch.equal(replaced[20], coordinate_median(tokens))
    assert torch.equal(remove_outliers(tokens), tokens[:20])
    assert torch.equal(tokens, before)
