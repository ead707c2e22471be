from __future__ import annotations

import numpy as np
import pytest
import torch

from mir_plugin.measurement.pooled_tokens import pooled_moments
from mir_plugin.metric.frechet import frechet_distance, trace_product, trace_term
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.reference import reference_fast_distance

# Sums of d square roots of eigenvalues: rounding of 1e-16 relative in the matrix is up to 1e-8 in a root near zero.
NEAR_ZERO = 1e-6


def gaussian(n: int, d: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, d, dtype=torch.float64)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return spread * torch.randn(n, d, generator=generator, dtype=torch.float64) * scales @ mixing + 0.1


def isotropic(sigma: float, mean: float, d: int) -> Moments:
    return Moments(1000, torch.full((d,), mean, dtype=torch.float64), sigma**2 * torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize(("n", "d"), [(200, 8), (5, 12), (12, 12), (13, 12)])
def test_a_set_has_distance_zero_to_itself(n: int, d: int) -> None:
    one = moments(gaussian(n, d, seed=1))
    assert frechet_distance(one, one).item() == pytest.approx(0, abs=NEAR_ZERO)


def test_the_published_default_mode_does_not_give_zero_for_identical_sets() -> None:
    # The slip this project exists to name: it must stay wrong in the reference, or the parity tests test nothing.
    features = gaussian(400, 8, seed=2, spread=3.0)
    assert abs(reference_fast_distance(features, features)) > 0.1


@pytest.mark.parametrize(("n_vision", "n_text"), [(300, 200), (300, 6), (6, 300), (7, 6)])
def test_the_distance_is_symmetric(n_vision: int, n_text: int) -> None:
    vision, text = moments(gaussian(n_vision, 20, seed=3)), moments(gaussian(n_text, 20, seed=4))
    assert frechet_distance(vision, text).item() == pytest.approx(frechet_distance(text, vision).item(), rel=1e-9)


def test_rotating_both_sets_changes_nothing() -> None:
    vision, text = gaussian(80, 16, seed=5), gaussian(90, 16, seed=6)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))).Q
    plain = frechet_distance(moments(vision), moments(text)).item()
    assert frechet_distance(moments(vision @ rotation), moments(text @ rotation)).item() == pytest.approx(
        plain, rel=1e-9
    )


def test_isotropic_gaussians_have_the_closed_form() -> None:
    near, far = isotropic(sigma=2, mean=0, d=4), isotropic(sigma=5, mean=1, d=4)
    assert frechet_distance(near, far).item() == pytest.approx(4 * 1**2 + 4 * (5 - 2) ** 2)  # d·Δμ² + d·Δσ²


def test_commuting_covariances_have_the_closed_form() -> None:
    one, other = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([16.0, 1.0, 4.0]).double()
    mean = torch.zeros(3, dtype=torch.float64)
    term = trace_term(Moments(9, mean, one.diag()), Moments(9, mean, other.diag()))
    assert term.value.item() == pytest.approx((one * other).sqrt().sum().item())


@pytest.mark.parametrize(
    ("n_vision", "n_text", "route"),
    [(60, 50, "cholesky"), (60, 9, "gram"), (9, 60, "gram"), (9, 8, "cross")],
)
def test_every_route_gives_the_trace_of_the_symmetric_root(n_vision: int, n_text: int, route: str) -> None:
    vision, text = moments(gaussian(n_vision, 20, seed=8)), moments(gaussian(n_text, 20, seed=9))
    term = trace_term(vision, text)
    assert term.route == route
    # Independent of the product code: NumPy, both roots by eigendecomposition, the nuclear norm of their product.
    expected = np.linalg.svd(symmetric_root(vision.cov) @ symmetric_root(text.cov), compute_uv=False).sum()
    assert term.value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n_vision", "n_replaced"), [(15, 0), (15, 4), (20, 0), (23, 5)])
def test_the_order_of_few_tokens_does_not_matter_to_ten_digits(n_vision: int, n_replaced: int) -> None:
    # Rank is lost by centring and by equal rows; roots of rounded zeros would leave seven digits.
    tokens, text = gaussian(n_vision, 20, seed=15), moments(gaussian(90, 20, seed=16))
    replaced, median = torch.arange(n_vision) < n_replaced, tokens.median(dim=0).values
    values = []
    for seed in range(4):
        order = torch.randperm(n_vision, generator=torch.Generator().manual_seed(seed))
        term = trace_term(pooled_moments(tokens[order], replaced[order] if n_replaced else None, median), text)
        assert term.route == "gram"
        values.append(term.value.item())
    assert values == pytest.approx([values[0]] * 4, rel=1e-11)


def test_a_singular_covariance_takes_the_eigh_route_and_agrees() -> None:
    flat = gaussian(100, 12, seed=10)
    flat[:, 3:] = 0  # rank 3 with more tokens than dimensions: Cholesky fails
    vision, text = moments(flat), moments(gaussian(100, 12, seed=11))
    term = trace_term(vision, text)
    assert term.route == "eigh"
    expected = np.linalg.svd(symmetric_root(vision.cov) @ symmetric_root(text.cov), compute_uv=False).sum()
    assert term.value.item() == pytest.approx(expected, rel=1e-6)


def test_a_point_mass_has_no_trace_term() -> None:
    point = moments(torch.ones(30, 5))
    assert trace_term(point, moments(gaussian(30, 5, seed=12))).value.item() == pytest.approx(0, abs=NEAR_ZERO)


def test_the_trace_product_is_the_trace_of_the_product() -> None:
    vision, text = moments(gaussian(60, 7, seed=13)), moments(gaussian(50, 7, seed=14))
    assert trace_product(vision, text).item() == pytest.approx((vision.cov @ text.cov).trace().item(), rel=1e-12)


def symmetric_root(cov: torch.Tensor) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov.numpy())
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
