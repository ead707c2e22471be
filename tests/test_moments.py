from __future__ import annotations

import pytest
import torch

import mir_plugin.metric.moments
from mir_plugin.errors import MirError
from mir_plugin.metric.moments import moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_those_of_the_float64_features(dtype: torch.dtype) -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    one = moments(features)
    torch.testing.assert_close(one.mean, features.double().mean(dim=0))
    torch.testing.assert_close(one.cov, features.double().T.cov())


def test_chunks_do_not_change_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(101, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = moments(features)
    monkeypatch.setattr(mir_plugin.metric.moments, "CHUNK_ROWS", 7)
    torch.testing.assert_close(moments(features).cov, whole.cov, rtol=1e-13, atol=1e-15)


def test_a_spread_far_below_the_mean_keeps_its_digits() -> None:
    # E[xx] − μμ would return rounding noise here: 1e8² carries 16 digits, the variance sits in the 17th.
    features = 1e8 + torch.randn(1000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(moments(features).cov, (features - 1e8).T.cov(), rtol=1e-6, atol=1e-8)


def test_fewer_tokens_than_dimensions_keep_a_root_of_the_covariance() -> None:
    one = moments(torch.randn(5, 9, generator=torch.Generator().manual_seed(3)))
    assert one.root is not None
    torch.testing.assert_close(one.root.T @ one.root, one.cov)
    assert moments(torch.randn(9, 5)).root is None
    assert moments(torch.randn(6, 5)).root is None
    square = moments(torch.randn(5, 5))  # of rank 4, as centred rows sum to zero
    assert square.root is not None
    torch.testing.assert_close(square.root.T @ square.root, square.cov)
    scaled = one.scaled(3.0)
    assert scaled.root is not None
    torch.testing.assert_close(scaled.root.T @ scaled.root, scaled.cov)
    torch.testing.assert_close(scaled.cov, 9 * one.cov)


def test_replaced_rows_count_as_the_replacement_and_the_input_stays() -> None:
    features = torch.arange(12.0).view(4, 3)
    before = features.clone()
    by_hand = features.clone()
    by_hand[1] = 100.0
    one = moments(features, replaced=torch.tensor([False, True, False, False]), replacement=torch.full((3,), 100.0))
    torch.testing.assert_close(one.cov, by_hand.double().T.cov())
    assert torch.equal(features, before)


@pytest.mark.parametrize("n_replaced", [1, 3])
def test_a_root_has_as_many_rows_as_the_covariance_has_rank(n_replaced: int) -> None:
    features = torch.randn(9, 12, generator=torch.Generator().manual_seed(5))
    replaced = torch.zeros(9, dtype=torch.bool)
    replaced[[7, 2, 4][:n_replaced]] = True
    one = moments(features, replaced, torch.full((12,), 0.5))
    assert one.root is not None
    assert one.root.shape == (9 - n_replaced, 12)
    torch.testing.assert_close(one.root.T @ one.root, one.cov)
    assert torch.linalg.matrix_rank(one.root) == len(one.root) == torch.linalg.matrix_rank(one.cov)


def test_rows_are_replaced_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mir_plugin.metric.moments, "CHUNK_ROWS", 3)
    features = torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    replaced = torch.tensor([False] * 6 + [True, False])
    by_hand = features.clone()
    by_hand[6] = 5.0
    one = moments(features, replaced=replaced, replacement=torch.full((2,), 5.0))
    torch.testing.assert_close(one.mean, by_hand.mean(dim=0))


def test_one_token_is_refused() -> None:
    with pytest.raises(MirError, match=r"1 token\(s\).*at least 2"):
        moments(torch.ones(1, 3))
