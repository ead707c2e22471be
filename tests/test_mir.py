from __future__ import annotations

import math

import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.mir import effective_rank, layer_distance, mir
from mir_plugin.moments import Moments
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures


def features(n_vision: int = 90, n_text: int = 70, d: int = 8, seed: int = 0) -> TokenFeatures:
    generator = torch.Generator().manual_seed(seed)
    vision = 2 * torch.randn(n_vision, d, generator=generator) + 1
    text = torch.randn(n_text, d, generator=generator) * torch.linspace(0.5, 2, d)
    vision[3] *= 40  # one outlier of each modality
    text[5] *= 40
    return TokenFeatures(1, vision, text, (n_vision,), (n_text,))


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


def test_mir_is_the_logarithm_of_the_sum() -> None:
    assert mir([1.0, 9.0]) == pytest.approx(1)
    with pytest.raises(MirError, match="no logarithm"):
        mir([0.0, 0.0])
    with pytest.raises(MirError, match="no logarithm"):
        mir([math.nan])


def test_effective_rank_counts_equal_directions() -> None:
    cov = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0])).double()
    assert effective_rank(Moments(9, torch.zeros(5).double(), cov)) == pytest.approx(3)
    assert effective_rank(Moments(9, torch.zeros(5).double(), cov * 0)) == 0
