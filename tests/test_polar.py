"""The polar route: no eigenvalues, and the values, transports and gradients of the routes that have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mir_plugin.metric import frechet
from mir_plugin.metric.frechet import (
    WAYS,
    frechet_distance,
    trace_term,
    trace_term_by_eigenvalues,
    transport,
    transport_by_eigenvectors,
    way_on,
)
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.polar import _weights, polar, root_of, root_of_covariance, trace_term_by_polar

D = 24


def normal(n: int, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(normal(D, D, seed)).Q


def graded(n: int, condition: float, seed: int) -> Tensor:
    """Tokens whose covariance has about this condition number, in directions of no coordinate."""
    exponent = -torch.tensor(condition).log10().item() / 2
    return normal(n, seed=seed) * torch.logspace(0, exponent, D, dtype=torch.float64) @ rotation(seed)


def of_rank(n: int, rank: int, seed: int) -> Tensor:
    return normal(n, rank, seed) @ normal(rank, D, seed + 1) + 1


def with_massive_coordinate(tokens: Tensor) -> Tensor:
    tokens[:, 5] = 2000 * tokens[:, 5] + 300
    return tokens


def with_dead_coordinate(tokens: Tensor) -> Tensor:
    tokens[:, 7] = 0.3
    return tokens


# (vision, text, whether the routes by eigenvalues are exact): not if a covariance is singular unknown to its moments,
# nor if a coordinate is so large that ordinary ones are near the rounding of its square.
CASES = {
    "well conditioned": (normal(90), 2 * normal(80, seed=1) + 1, True),
    "condition 1e14": (graded(300, 1e14, 2), graded(200, 1e14, 3), True),
    "condition 1e14 in one": (graded(300, 1e14, 2), normal(80, seed=1), True),
    "isotropic": (3 * normal(200), normal(200) + 2, True),
    "identical": (normal(90), normal(90), True),
    "few tokens in both": (normal(9), normal(7, seed=1), True),
    "few vision tokens": (normal(9), normal(70, seed=1), True),
    "few text tokens": (normal(90), normal(7, seed=1), True),
    "as many tokens as dimensions": (normal(D), normal(D, seed=1), True),
    "one direction": (normal(2), normal(60, seed=1), True),
    "a massive coordinate": (with_massive_coordinate(normal(90)), with_massive_coordinate(normal(80, seed=1)), False),
    "singular vision": (of_rank(90, 10, 4), normal(80, seed=1), False),
    "singular text": (normal(80, seed=1), of_rank(90, 10, 4), False),
    "both singular": (of_rank(90, 10, 4), of_rank(80, 15, 6), False),
    "singular of one space": (of_rank(90, 10, 4), 2 * of_rank(90, 10, 4).flip(0), False),
    "singular with few tokens": (of_rank(90, 10, 4), normal(7, seed=1), False),
    "a dead coordinate": (with_dead_coordinate(normal(90)), with_dead_coordinate(normal(80, seed=1)), False),
    "vision tokens all equal": (torch.ones(30, D).double(), normal(80, seed=1), False),
    "all tokens equal": (torch.ones(30, D).double(), torch.zeros(40, D).double(), False),
    "few equal tokens": (torch.ones(3, D).double(), normal(80, seed=1), True),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def by_polar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way of accelerators on the CPU."""
    monkeypatch.setitem(WAYS, "cpu", "polar")


def terms_and_nuclear_norm(vision: Tensor, text: Tensor) -> tuple[float, float]:
    """‖μ_v − μ_t‖² + Tr Σ_v + Tr Σ_t and the trace term, from the tokens: exact where covariances are singular, too."""
    roots = [(tokens - tokens.mean(0)) / (len(tokens) - 1) ** 0.5 for tokens in (vision, text)]
    apart = (vision.mean(0) - text.mean(0)).square().sum() + roots[0].square().sum() + roots[1].square().sum()
    return apart.item(), torch.linalg.svdvals(roots[0] @ roots[1].t()).sum().item()


@every_case
@pytest.mark.usefixtures("by_polar")
def test_the_distance_is_exact(name: str) -> None:
    vision, text, _ = CASES[name]
    apart, nuclear = terms_and_nuclear_norm(vision, text)
    found = frechet_distance(moments(vision), moments(text)).item()
    distance = apart - 2 * nuclear
    # The asked-for 1e-9 of the distance; where that is 0, rounding of the terms it is the difference of.
    assert found == pytest.approx(distance, abs=1e-9 * abs(distance) + 1e-13 * apart)
    assert trace_term(moments(vision), moments(text)).route == "polar"


@every_case
def test_the_distance_is_that_of_the_routes_by_eigenvalues(name: str) -> None:
    vision, text, exact = CASES[name]
    pair = moments(vision), moments(text)
    apart, nuclear = terms_and_nuclear_norm(vision, text)
    expected = trace_term_by_eigenvalues(*pair).value.item()
    # By eigenvalues a direction may have the root of a rounding error: 1e-8 of the largest.
    tolerance = 2e-9 * abs(apart - 2 * nuclear) / 2 + 1e-13 * apart if exact else 1e-7 * apart
    assert trace_term_by_polar(*pair).item() == pytest.approx(expected, abs=tolerance)


@every_case
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.usefixtures("by_polar")
def test_the_transport_is_that_of_the_eigenvectors(name: str, swapped: bool) -> None:
    vision, text = (moments(tokens) for tokens in CASES[name][:2][:: -1 if swapped else 1])
    found, expected = transport(vision, text), transport_by_eigenvectors(vision, text)
    for tokens, own, by_polar, by_eigenvectors in (
        (CASES[name][swapped], vision, found.to_text, expected.to_text),
        (CASES[name][not swapped], text, found.to_vision, expected.to_vision),
    ):
        lengths = [((tokens - own.mean) @ factor.t()).square().sum(dim=1) for factor in (by_polar, by_eigenvectors)]
        # What the influences take from it. Directions below 1e-6 of the largest are left out by slightly different
        # rules: up to 1e-6 of the sum for each.
        torch.testing.assert_close(*lengths, rtol=0, atol=1e-5 * lengths[1].max().item() + 1e-12)
    assert found.trace_term.value.item() == pytest.approx(trace_term(vision, text).value.item(), rel=1e-12)


@every_case
def test_a_root_has_a_row_for_each_direction_that_is_not_rounding(name: str) -> None:
    for tokens in CASES[name][:2]:
        one = moments(tokens)
        root = root_of_covariance(one)
        torch.testing.assert_close(root.T @ root, one.cov, rtol=1e-12, atol=1e-12 * one.cov.abs().max().item())
        centred = tokens - one.mean
        if "1e14" not in name and "massive" not in name:  # which numpy's rank takes for rounding
            assert len(root) == torch.linalg.matrix_rank(centred, rtol=1e-12)


@pytest.mark.parametrize("shape", [(9, 9), (12, 5), (7, 0), (1, 1)])
@pytest.mark.parametrize("condition", [1.0, 1e7, 1e15])
def test_the_polar_factors_are_those_of_the_singular_value_decomposition(
    shape: tuple[int, int], condition: float
) -> None:
    u, _, vt = torch.linalg.svd(normal(*shape), full_matrices=False)
    values = 5 * torch.logspace(0, -torch.tensor(condition).log10().item(), shape[1], dtype=torch.float64)
    found = polar(u * values @ vt)
    torch.testing.assert_close(found.unitary.T @ found.unitary, torch.eye(shape[1]).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.positive, vt.T * values @ vt, rtol=0, atol=1e-13)


def test_nothing_has_a_polar_decomposition_of_nothing() -> None:
    found = polar(torch.zeros(4, 3, dtype=torch.float64))
    assert not found.unitary.any()
    assert not found.positive.any()


def test_the_steps_carry_every_singular_value_above_rounding_to_one() -> None:
    values = torch.logspace(torch.tensor(torch.finfo(torch.float64).eps).log10().item(), 0, 200, dtype=torch.float64)
    steps = list(_weights())
    assert len(steps) == 6
    for a, b, c in steps:
        values = values * (a + b * values**2) / (1 + c * values**2)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-14)


def test_a_singular_matrix_has_a_root_with_fewer_rows() -> None:
    factor = normal(3, 6)
    root = root_of(factor.T @ factor, smallest=1e-12)
    assert root.shape == (3, 6)
    torch.testing.assert_close(root.T @ root, factor.T @ factor)
    assert root_of(torch.zeros(4, 4).double(), smallest=0.0).shape == (0, 4)


def test_each_kind_of_device_has_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_on(torch.device("cpu")) == "eigenvalues"
    assert way_on(torch.device("mps")) == "eigenvalues on the CPU"
    for capability, way in (((9, 0), "polar"), ((8, 0), "polar"), ((8, 9), "eigenvalues on the CPU")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert way_on(torch.device("cuda", 0)) == way


def test_slow_float64_is_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    plain = Moments.to
    monkeypatch.setattr(Moments, "to", lambda self, device: (moved.append(str(device)), plain(self, device))[1])
    monkeypatch.setattr(frechet, "way_on", lambda _: "eigenvalues on the CPU")
    vision, text = moments(normal(90)), moments(normal(80, seed=1))
    assert trace_term(vision, text) == trace_term_by_eigenvalues(vision, text)
    assert torch.equal(transport(vision, text).to_text, transport_by_eigenvectors(vision, text).to_text)
    assert moved == ["cpu"] * 4
