from __future__ import annotations

import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.metric.moments import moments, root_of_centred


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_those_of_the_float64_features(dtype: torch.dtype) -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    one = moments(features)
    torch.testing.assert_close(one.mean, features.double().mean(dim=0))
    torch.testing.assert_close(one.cov, features.double().T.cov())


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


def test_one_token_is_refused() -> None:
    with pytest.raises(MirError, match=r"1 token\(s\).*at least 2"):
        moments(torch.ones(1, 3))


def test_equal_tokens_do_not_count_towards_the_rank() -> None:
    distinct = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    one = moments(distinct[[0, 1, 1, 2, 3, 4, 5, 5, 5]])
    assert one.root is not None
    assert one.root.shape == (5, 12)
    torch.testing.assert_close(one.root.T @ one.root, one.cov)
    assert torch.linalg.matrix_rank(one.root) == 5


def test_a_root_of_weighted_rows_has_their_products_in_one_row_less() -> None:
    generator = torch.Generator().manual_seed(6)
    rows, counts = torch.randn(4, 7, generator=generator, dtype=torch.float64), torch.tensor([1, 3, 2, 5])
    rows -= (counts[:, None] * rows).sum(dim=0) / counts.sum()
    root = root_of_centred(rows, counts)
    assert root.shape == (3, 7)
    torch.testing.assert_close(root.T @ root, rows.T @ (counts[:, None] * rows))
