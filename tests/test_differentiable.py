"""The Fréchet distance as a loss: its values are the measured ones, its gradients those of finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.frechet import WAYS
from mir_plugin.metric.loss import (
    frechet_loss,
    layer_loss,
    mir_loss,
    trace_term,
)
from mir_plugin.results import MirConfig
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import TokenFeatures

from toy import ToyAdapter, toy_samples


def tokens(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator)


def with_constant_coordinate(states: Tensor) -> Tensor:
    return torch.cat([torch.full_like(states[:, :1], 0.7), states[:, 1:]], dim=1)


# (vision, text): covariances of full rank, of fewer tokens than dimensions, with directions one modality never takes.
CASES = {
    "more tokens than dimensions": (tokens(9, 3, 0) * 2 + 1, tokens(7, 3, 1)),
    "fewer tokens than dimensions": (tokens(4, 6, 0), tokens(3, 6, 1) * 3),
    "fewer vision tokens only": (tokens(3, 5, 0), tokens(9, 5, 1)),
    "fewer text tokens only": (tokens(9, 5, 0), tokens(2, 5, 1)),
    "a vision coordinate never changes": (with_constant_coordinate(tokens(9, 3, 0)), tokens(8, 3, 1)),
    "a text coordinate never changes": (tokens(8, 3, 0), with_constant_coordinate(tokens(9, 3, 1))),
    "the same coordinate never changes": tuple(map(with_constant_coordinate, (tokens(9, 3, 0), tokens(8, 3, 1)))),
    "all vision tokens equal": (tokens(1, 3, 0).expand(6, -1).contiguous(), tokens(8, 3, 1)),
    "all tokens of both equal": (torch.ones(4, 3).double(), torch.zeros(4, 3).double()),
    "orthogonal subspaces": (torch.diag(torch.ones(4))[:, :2].double() @ torch.eye(2, 4).double(), tokens(6, 4, 1)),
    "the same tokens": (tokens(8, 3, 0), tokens(8, 3, 0)),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(params=["eigenvalues", "polar"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By singular values, as on a CPU, and by the polar decomposition, as on accelerators."""
    monkeypatch.setitem(WAYS, "cpu", request.param)


@every_case
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    vision, text = (states.clone().requires_grad_() for states in CASES[name])
    assert torch.autograd.gradcheck(frechet_loss, (vision, text))
    assert torch.autograd.gradcheck(trace_term, (vision, text))


@pytest.mark.parametrize("name", [name for name in CASES if name != "all tokens of both equal"])  # text of norm zero
def test_gradients_include_the_text_centric_normalization(name: str) -> None:
    vision, text = (states.clone().requires_grad_() for states in CASES[name])
    assert torch.autograd.gradcheck(layer_loss, (vision, text))


def plain_trace_term(vision: Tensor, text: Tensor) -> Tensor:
    """What one writes first: correct in value, and left to automatic differentiation."""
    vision_cov, text_cov = vision.t().cov(), text.t().cov()
    values, vectors = torch.linalg.eigh(vision_cov)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return torch.linalg.eigvalsh(root @ text_cov @ root).clamp_min(0).sqrt().sum()


@pytest.mark.parametrize("name", ["all vision tokens equal", "orthogonal subspaces"])
def test_plain_automatic_differentiation_goes_wrong_where_a_covariance_is_singular(name: str) -> None:
    vision, text = (states.clone().requires_grad_() for states in CASES[name])
    (plain,) = torch.autograd.grad(plain_trace_term(vision, text), vision)
    assert plain.isnan().any()
    (ours,) = torch.autograd.grad(frechet_loss(vision, text), vision)
    assert torch.isfinite(ours).all()


@every_case
def test_values_are_the_measured_ones(name: str) -> None:
    vision, text = CASES[name]
    if name == "all tokens of both equal":
        text = text + 0.5
    features = TokenFeatures(1, vision, text, (len(vision),), (len(text),))
    measured = PooledLayer.of(features, MirConfig(outliers="none")).layer_distance()
    # Float64 on both sides, by different decompositions; sums of terms of the size of the traces.
    size = measured.mean_term + measured.trace_vision + measured.trace_text
    assert layer_loss(vision, text).item() == pytest.approx(measured.distance, abs=1e-7 * size)


def test_a_common_shape_in_another_size_has_the_closed_form_and_its_slope() -> None:
    text = tokens(20, 4, 0)
    text = text - text.mean(dim=0)
    spread = text.t().cov().trace().item()
    size = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    distance = frechet_loss(size * text + 2, text)
    distance.backward()
    assert distance.item() == pytest.approx(4 * 2**2 + (3 - 1) ** 2 * spread)
    assert size.grad is not None
    assert size.grad.item() == pytest.approx(2 * (3 - 1) * spread)


def test_gradients_reach_half_precision_tokens_in_their_dtype() -> None:
    vision = tokens(5, 3, 0).bfloat16().requires_grad_()
    frechet_loss(vision, tokens(6, 3, 1)).backward()
    assert vision.grad is not None
    assert vision.grad.dtype == torch.bfloat16
    assert vision.grad.abs().sum() > 0


def test_one_token_of_a_modality_is_refused_by_name() -> None:
    with pytest.raises(MirError, match=r"1 text token\(s\) in the batch"):
        frechet_loss(tokens(5, 3, 0), tokens(1, 3, 1))


class Projected(ToyAdapter):
    """The toy adapter with a learnable map of its vision tokens: a projector."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(16, 16)
        nn.init.eye_(self.projector.weight)
        nn.init.zeros_(self.projector.bias)

    def encode(self, samples):  # type: ignore[no-untyped-def]
        batch = super().encode(samples)
        embeddings = batch.inputs["inputs_embeds"].clone()
        embeddings[batch.vision_mask] = self.projector(embeddings[batch.vision_mask])
        batch.inputs["inputs_embeds"] = embeddings
        return batch


def test_a_few_steps_down_the_loss_lower_the_measured_mir() -> None:
    adapter, samples = Projected(), SampleSet(tuple(toy_samples(6)))
    before = measure(adapter, samples, checkpoint="before").mir
    optimiser = torch.optim.Adam(adapter.projector.parameters(), lr=0.1)
    for _ in range(5):
        batch = adapter.encode(samples.samples)
        states = adapter.model(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states[1:]
        loss = mir_loss(states, batch.vision_mask, batch.text_mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = measure(adapter, samples, checkpoint="after").mir
    assert after < before - 0.05, f"{before:.3f} -> {after:.3f}"
