from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mir_plugin.errors import MirError
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.frechet import trace_term, transport
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.uncertainty import (
    half_width,
    influences_of,
    standard_error,
    uncertainty,
)
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures

pytestmark = pytest.mark.slow

Pair = tuple[torch.Tensor, torch.Tensor]


def draw(n: int, d: int, n_vision: int, n_text: int, seed: int) -> list[Pair]:
    """Samples of one known distribution: tokens of a sample share an offset, coordinates differ in spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1.5, d)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / d**0.5
    samples = []
    for _ in range(n):
        n_here = int(torch.randint(n_text // 2, n_text * 3 // 2, (1,), generator=generator))
        vision, text = (
            torch.randn(tokens, d, generator=generator) + 0.4 * torch.randn(1, d, generator=generator)
            for tokens in (n_vision, n_here)
        )
        samples.append(((2 * vision * spread) @ mixing + 0.3, (text * spread.flip(0)) @ mixing))
    return samples


def pooled(samples: list[Pair]) -> TokenFeatures:
    vision, text = [v for v, _ in samples], [t for _, t in samples]
    return TokenFeatures(1, torch.cat(vision), torch.cat(text), tuple(map(len, vision)), tuple(map(len, text)))


def influences(samples: list[Pair], config: MirConfig) -> tuple[float, torch.Tensor]:
    layer = PooledLayer.of(pooled(samples), config)
    maps = layer.transport()
    distance = layer.layer_distance(maps.trace_term).distance
    return distance, layer.influences(maps, distance)


# (samples, d, vision tokens a sample, mean text tokens a sample); fewer tokens than dimensions in text, in both,
# and in vision.
SHAPES = [(8, 5, 12, 8), (8, 60, 12, 6), (5, 60, 4, 6), (8, 40, 3, 12)]


def weighted_distance(samples: list[Pair], weights: np.ndarray, normalize: bool) -> float:
    """The layer distance with every sample counted ``weight`` times, in NumPy, nothing shared with the product.

    The factor n / (n − 1) stays that of the unweighted tokens: it stands for the number of samples, not for a choice.
    """
    means, covariances, lengths = [], [], []
    for modality in (0, 1):
        rows = np.concatenate([sample[modality].double().numpy() for sample in samples])
        w = np.repeat(weights, [len(sample[modality]) for sample in samples])
        mean = w @ rows / w.sum()
        means.append(mean)
        covariances.append((rows - mean).T * w @ (rows - mean) / w.sum() * len(rows) / (len(rows) - 1))
        lengths.append(w @ np.linalg.norm(rows, axis=1) / w.sum())
    roots = [vectors * np.sqrt(values.clip(min=0)) for values, vectors in map(np.linalg.eigh, covariances)]
    trace_term = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    distance = np.square(means[0] - means[1]).sum() + sum(map(np.trace, covariances)) - 2 * trace_term
    return float(distance / lengths[1] ** 2 if normalize else distance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_an_influence_is_the_derivative_with_respect_to_a_sample_s_weight(
    shape: tuple[int, int, int, int], normalize: bool
) -> None:
    samples = draw(*shape, seed=1)
    distance, found = influences(samples, MirConfig(outliers="none", normalize=normalize))
    assert distance == pytest.approx(weighted_distance(samples, np.ones(len(samples)), normalize), rel=1e-6)
    step = 1e-4
    for i in range(len(samples)):
        change = step * np.eye(len(samples))[i]
        slope = (
            weighted_distance(samples, 1 + change, normalize) - weighted_distance(samples, 1 - change, normalize)
        ) / (2 * step)
        # Float32 products in the influences; roots of eigenvalues that are 0 but for rounding in the slope.
        assert found[i].item() == pytest.approx(slope, abs=1e-5 * distance)


@pytest.mark.parametrize("shape", SHAPES)
def test_influences_sum_to_zero_and_give_the_error_of_leaving_each_sample_out(shape: tuple[int, int, int, int]) -> None:
    samples = draw(*shape, seed=2)
    config = MirConfig(outliers="none")  # a threshold that moves with the left-out sample is no linear matter
    distance, found = influences(samples, config)
    assert found.sum().item() == pytest.approx(0, abs=1e-9 * distance)
    n = len(samples)
    without = torch.tensor([influences(samples[:i] + samples[i + 1 :], config)[0] for i in range(n)])
    brute_force = math.sqrt((n - 1) / n * (without - without.mean()).square().sum().item())
    # A linear approximation against a whole sample left out of eight: they agree to about an eighth.
    assert standard_error(found.tolist()) == pytest.approx(brute_force, rel=0.25)
    assert torch.corrcoef(torch.stack([-found, without.double()]))[0, 1] > 0.9


def test_massive_activations_leave_the_influences_their_digits() -> None:
    # One coordinate a thousand times larger than the rest, as in real hidden states; the products are in float32.
    samples = draw(8, 6, 20, 15, seed=7)
    for vision, text in samples:
        vision[:, 2] += 300
        text[:, 2] = 290 + 100 * text[:, 2]
    distance, found = influences(samples, MirConfig(outliers="none", normalize=False))
    step = 1e-4
    for i in range(8):
        change = step * np.eye(8)[i]
        slope = (weighted_distance(samples, 1 + change, False) - weighted_distance(samples, 1 - change, False)) / (
            2 * step
        )
        assert found[i].item() == pytest.approx(slope, abs=1e-4 * distance)


def test_the_interval_covers_the_spread_over_disjoint_sample_sets() -> None:
    values, errors = [], []
    for seed in range(120):
        distance, found = influences(draw(30, 6, 10, 8, seed=1000 + seed), MirConfig())
        values.append(math.log10(distance))
        errors.append(standard_error(found.tolist()) / distance / math.log(10))
    mean = sum(values) / len(values)
    covered = sum(abs(value - mean) <= half_width(error, 30) for value, error in zip(values, errors, strict=True))
    # 95 % of 120 is 114, with a standard deviation of 2.4; the linear approximation is a few per cent too narrow.
    assert 105 <= covered <= 120
    assert sum(errors) / len(errors) == pytest.approx(torch.tensor(values).std().item(), rel=0.2)


def test_removed_outliers_have_no_influence_but_through_the_scale() -> None:
    samples = draw(12, 5, 20, 15, seed=3)
    outlying = [*samples[:-1], (samples[-1][0], torch.cat([samples[-1][1], 80 * samples[-1][1][:1]]))]
    _, kept_out = influences(outlying, MirConfig(outliers="remove", n_sigma=8, normalize=False))
    _, plain = influences(samples, MirConfig(outliers="none", normalize=False))
    torch.testing.assert_close(kept_out, plain, rtol=1e-4, atol=1e-6)
    _, counted = influences(outlying, MirConfig(outliers="none", normalize=False))
    assert counted[-1].abs() > 10 * plain[-1].abs()


def test_replaced_outliers_count_as_the_median() -> None:
    samples = draw(12, 5, 20, 15, seed=4)
    samples[2][0][7] *= 200
    prepared = PooledLayer.of(pooled(samples), MirConfig(n_sigma=8, normalize=False))
    assert prepared.vision.n_outliers == 1
    assert prepared.vision.replacement is not None
    _, found = influences(samples, MirConfig(n_sigma=8, normalize=False))
    samples[2][0][7] = prepared.vision.replacement
    _, by_hand = influences(samples, MirConfig(outliers="none", normalize=False))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n_vision", "n_text"), [(90, 80), (90, 7), (7, 90), (7, 6)])
def test_the_transport_carries_one_covariance_onto_the_other_where_both_have_rank(n_vision: int, n_text: int) -> None:
    generator = torch.Generator().manual_seed(5)
    vision = moments(torch.randn(n_vision, 12, generator=generator, dtype=torch.float64))
    text = moments(torch.randn(n_text, 12, generator=generator, dtype=torch.float64))
    maps = transport(vision, text)
    there, back = maps.to_text.T @ maps.to_text, maps.to_vision.T @ maps.to_vision
    rank = min(n_vision - 1, n_text - 1, 12)
    assert maps.to_text.shape == (rank, 12)
    # ⟨T, Σ_v⟩ = ⟨T⁻¹, Σ_t⟩ = Tr (Σ_v Σ_t)^½ on every route.
    expected = torch.linalg.eigvals(vision.cov @ text.cov).real.clamp_min(0).sqrt().sum().item()
    assert (there * vision.cov).sum().item() == pytest.approx(expected, rel=1e-6)
    assert (back * text.cov).sum().item() == pytest.approx(expected, rel=1e-6)
    alone = trace_term(vision, text)
    assert maps.trace_term.route == alone.route
    # Centred rows lack one rank: the root of an eigenvalue that is 0 up to 1e-16 is 0 up to 1e-8.
    assert maps.trace_term.value.item() == pytest.approx(alone.value.item(), rel=1e-7)
    if rank == 12:
        torch.testing.assert_close(there @ vision.cov @ there, text.cov)
        torch.testing.assert_close(there @ back, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_covariance_without_directions_transports_nothing_and_gives_finite_influences() -> None:
    flat = Moments(9, torch.zeros(4).double(), torch.zeros(4, 4).double())
    assert transport(flat, flat).to_text.shape == (0, 4)
    point = moments(torch.ones(3, 4))  # known to have no rank, unlike a covariance of zeros
    assert transport(point, flat).to_text.shape == transport(point, point).to_text.shape == (0, 4)
    same = torch.ones(6, 4)
    features = TokenFeatures(1, same * 2, same, (2, 2, 2), (2, 2, 2))
    layer = PooledLayer.of(features, MirConfig())
    found = layer.influences(layer.transport(), layer.layer_distance().distance)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_singular_covariances_with_more_tokens_than_dimensions_give_the_influences_of_their_subspace() -> None:
    samples = draw(10, 4, 12, 10, seed=6)
    config = MirConfig(outliers="none")
    _, plain = influences(samples, config)
    padded = [(torch.nn.functional.pad(v, (0, 3)), torch.nn.functional.pad(t, (0, 3))) for v, t in samples]
    _, found = influences(padded, config)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_the_standard_error_of_a_mean_is_the_textbook_s() -> None:
    values = torch.tensor([3.0, 5.0, 10.0, 2.0])
    of_mean = ((values - values.mean()) / 4).tolist()
    assert standard_error(of_mean) == pytest.approx(values.std().item() / 2)
    assert half_width(2.0, 11) == pytest.approx(2.0 * stats.t(10).ppf(0.975))


def test_layers_add_up_before_they_are_squared() -> None:
    stored = uncertainty([60.0, 40.0], [[3.0, -3.0], [-3.0, 3.0]])
    assert stored["standard_error"] == 0  # what one layer gains the other loses
    assert [layer["standard_error"] for layer in stored["layers"]] == pytest.approx([6.0, 6.0])
    one_way = uncertainty([60.0, 40.0], [[3.0, -3.0], [1.0, -1.0]])
    # d log10(S) = dS / (S ln 10): influences ±4 on S = 100, and √(2/1 · 2 · 4²) = 8.
    assert one_way["standard_error"] == pytest.approx(8 / (100 * math.log(10)))
    assert (one_way["low"] + one_way["high"]) / 2 == pytest.approx(2.0)
    assert one_way["layers"][0]["low"] == 0  # a squared distance is never negative


def test_influences_are_read_back_as_they_were_stored() -> None:
    stored = uncertainty([1.0], [[0.125, -0.5, 0.375]])
    assert influences_of(stored["layers"][0], "mir.json") == [0.125, -0.5, 0.375]
    with pytest.raises(MirError, match=r"mir.json: the influences .* cannot be read"):
        influences_of({"influences": "0.1 x"}, "mir.json")
    with pytest.raises(MirError, match="cannot be read"):
        influences_of({}, "mir.json")


def test_one_sample_has_no_standard_error_and_says_so() -> None:
    assert uncertainty([1.0], [[0.0]]) == {"not_computed": "one sample has no spread; measure at least 2"}
