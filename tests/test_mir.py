from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric import layer as plain
from mir_plugin.metric.layer import mir
from mir_plugin.metric.moments import Moments, effective_rank
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures


def features(n_vision: int = 90, n_text: int = 70, d: int = 8, seed: int = 0) -> TokenFeatures:
    generator = torch.Generator().manual_seed(seed)
    vision = 2 * torch.randn(n_vision, d, generator=generator) + 1
    text = torch.randn(n_text, d, generator=generator) * torch.linspace(0.5, 2, d)
    vision[3] *= 40  # one outlier of each modality
    text[5] *= 40
    return TokenFeatures(1, vision, text, (n_vision,), (n_text,))


def layer_distance(layer: TokenFeatures, config: MirConfig) -> LayerDistance:
    return PooledLayer.of(layer, config).layer_distance()


def prepared_by_hand(layer: TokenFeatures, config: MirConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's steps on a scaled copy of every token, in the released script's order."""
    vision, text = layer.vision.double(), layer.text.double()
    if config.normalize:
        scale = 1 / text.norm(dim=1).mean()
        vision, text = vision * scale, text * scale
    prepared = []
    for one in (vision, text):
        norms = one.norm(dim=1)
        far = (norms - norms.median()).abs() > config.n_sigma * norms.std()
        if config.outliers == "remove":
            one = one[~far]
        elif config.outliers == "replace":
            one = torch.where(far[:, None], one.median(dim=0).values, one)
        prepared.append(one)
    return prepared[0], prepared[1]


def share_by_hand(tokens: torch.Tensor) -> float:
    """Of the squared lengths, what the longest 5 % of the tokens have."""
    squares = sorted((row.square().sum().item() for row in tokens), reverse=True)
    return math.fsum(squares[: math.ceil(len(squares) / 20)]) / math.fsum(squares)


@pytest.mark.parametrize("outliers", ["replace", "remove", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_shortcuts_equal_the_steps_of_the_paper(outliers: str, normalize: bool) -> None:
    config = MirConfig(outliers=outliers, normalize=normalize)  # type: ignore[arg-type]
    vision, text = prepared_by_hand(features(), config)
    result = layer_distance(features(), config)
    product = vision.T.cov() @ text.T.cov()
    exact_trace = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()
    apart = (vision.mean(dim=0) - text.mean(dim=0)).square().sum() + vision.T.cov().trace() + text.T.cov().trace()
    assert result.distance == pytest.approx((apart - 2 * exact_trace).item(), rel=1e-9)
    assert result.distance_published == pytest.approx((apart - 2 * product.trace()).item(), rel=1e-9)
    assert result.distance_published_upper == pytest.approx(apart.item(), rel=1e-9)
    expected_outliers = 0 if outliers == "none" else 1
    assert (result.n_vision_outliers, result.n_text_outliers) == (expected_outliers, expected_outliers)


@pytest.mark.parametrize("normalize", [True, False])
def test_every_reported_number_is_its_own_quantity(normalize: bool) -> None:
    config = MirConfig(normalize=normalize)
    layer = features()
    layer.text[9] *= 30  # a second outlier of one modality, so that the two counts differ
    layer.text.add_(0.7)
    vision, text = prepared_by_hand(layer, config)
    result = layer_distance(layer, config)
    covs = vision.T.cov(), text.T.cov()
    root = torch.linalg.eigvals(covs[0] @ covs[1]).real.clamp_min(0).sqrt().sum().item()
    norms = layer.vision.double().norm(dim=1).mean().item(), layer.text.double().norm(dim=1).mean().item()
    means = vision.mean(dim=0), text.mean(dim=0)
    expected = {
        "layer": 1,
        "mean_term": (means[0] - means[1]).square().sum().item(),
        "trace_vision": covs[0].trace().item(),
        "trace_text": covs[1].trace().item(),
        "trace_term": root,
        "trace_product": (covs[0] @ covs[1]).trace().item(),
        "n_vision_tokens": 90,
        "n_text_tokens": 70,
        "n_vision_outliers": 1,
        "n_text_outliers": 2,
        "scale": 1 / norms[1] if normalize else 1.0,
        "mean_norm_vision": norms[0],
        "mean_norm_text": norms[1],
        "norm_ratio": norms[0] / norms[1],
        "mean_cosine": torch.nn.functional.cosine_similarity(*means, dim=0).item(),
        "effective_rank_vision": (covs[0].trace() ** 2 / (covs[0] @ covs[0]).trace()).item(),
        "effective_rank_text": (covs[1].trace() ** 2 / (covs[1] @ covs[1]).trace()).item(),
        "length_vision": (means[0].square().sum() + covs[0].trace()).sqrt().item(),
        "length_text": (means[1].square().sum() + covs[1].trace()).sqrt().item(),
        "longest_vision": share_by_hand(vision),
        "longest_text": share_by_hand(text),
    }
    found = dataclasses.asdict(result)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert result.trace_route == "cholesky"


def test_the_threshold_is_the_configured_one() -> None:
    strict, default = (layer_distance(features(), MirConfig(n_sigma=n)) for n in (0.05, 3.0))
    assert strict.n_vision_outliers > default.n_vision_outliers == 1
    vision, text = prepared_by_hand(features(), MirConfig(n_sigma=0.05))
    assert strict.mean_term == pytest.approx((vision.mean(dim=0) - text.mean(dim=0)).square().sum().item(), rel=1e-9)


def test_the_distance_of_a_set_to_itself_is_never_negative_and_its_means_need_no_direction() -> None:
    for seed in range(5):
        one = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
        assert layer_distance(TokenFeatures(1, one, one, (40,), (40,)), MirConfig()).distance >= 0
    mirrored = torch.cat([one, -one])
    nothing = layer_distance(TokenFeatures(1, mirrored * 0, mirrored, (80,), (80,)), MirConfig())
    assert nothing.mean_cosine is None


def test_features_are_left_as_they_were() -> None:
    layer = features()
    before = layer.vision.clone(), layer.text.clone()
    layer_distance(layer, MirConfig())
    assert torch.equal(layer.vision, before[0])
    assert torch.equal(layer.text, before[1])


def test_scaling_all_features_changes_nothing_but_the_scale() -> None:
    plain = layer_distance(features(), MirConfig())
    one = features()
    grown = TokenFeatures(1, one.vision * 1e4, one.text * 1e4, one.vision_counts, one.text_counts)
    result = layer_distance(grown, MirConfig())
    assert result.distance == pytest.approx(plain.distance, rel=1e-5)  # float32 products of the scaled features
    assert result.scale == pytest.approx(plain.scale / 1e4, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named_by_layer_and_sample(bad: float) -> None:
    layer = TokenFeatures(4, torch.ones(6, 3), torch.randn(6, 3), (2, 2, 2), (2, 2, 2))
    layer.vision[4, 1] = bad
    with pytest.raises(MirError, match=r"1 of 6 vision tokens at layer 4.*sample number 2"):
        layer_distance(layer, MirConfig())


def test_a_text_token_that_is_not_finite_is_found_by_the_text_counts() -> None:
    layer = TokenFeatures(2, torch.randn(6, 3), torch.randn(6, 3), (1, 1, 4), (4, 1, 1))
    layer.text[4, 0] = torch.nan
    with pytest.raises(MirError, match=r"text tokens at layer 2.*sample number 1"):
        layer_distance(layer, MirConfig())


def test_mir_is_the_logarithm_of_the_sum() -> None:
    assert mir([1.0, 9.0]) == pytest.approx(1)
    with pytest.raises(MirError, match="no logarithm"):
        mir([0.0, 0.0])
    with pytest.raises(MirError, match="no logarithm"):
        mir([math.nan])


def test_effective_rank_counts_equal_directions() -> None:
    cov = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0])).double()
    assert effective_rank(Moments(9, torch.zeros(5).double(), cov)).item() == pytest.approx(3)
    assert effective_rank(Moments(9, torch.zeros(5).double(), cov * 0)).item() == 0


@pytest.mark.parametrize("outliers", ["replace", "remove", "none"])
def test_the_distance_at_equal_length_is_that_of_tokens_of_equal_length(outliers: str) -> None:
    layer, config = features(), MirConfig(outliers=outliers)  # type: ignore[arg-type]
    found = layer_distance(layer, config)
    vision, text = prepared_by_hand(layer, config)
    of_length_one = [
        tokens / (tokens.mean(dim=0).square().sum() + tokens.T.cov().trace()).sqrt() for tokens in (vision, text)
    ]
    assert found.distance_at_equal_length == pytest.approx(plain_distance(*of_length_one).item(), rel=1e-9)
    longer = TokenFeatures(1, 8 * layer.vision, layer.text, layer.vision_counts, layer.text_counts)
    again = layer_distance(longer, config)
    assert again.distance > 5 * found.distance
    assert again.distance_at_equal_length == pytest.approx(found.distance_at_equal_length, rel=1e-9)


def test_tokens_that_differ_in_length_alone_have_no_distance_at_equal_length() -> None:
    text = features().text
    found = layer_distance(TokenFeatures(1, 3 * text, text, (70,), (70,)), MirConfig())
    assert found.length_term == pytest.approx(found.distance, rel=1e-9)
    assert found.distance_at_equal_length == pytest.approx(0, abs=1e-12)


def plain_distance(vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Of prepared tokens, without another preparation."""
    return plain.layer_distance(vision, text, outliers="none", normalize=False)
