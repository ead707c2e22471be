"""What stands beside MIR: lengths, and values that hang on few tokens or samples."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mir_plugin.measurement.diagnostics import fragile_values, fragilities, length_share, mir_at_equal_length
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.types import TokenFeatures


def layer(number: int, *, spiking: int = 0, longer: float = 1.0) -> LayerDistance:
    """One of 400 vision and 400 text tokens; some vision tokens are as long as massive activations make them."""
    generator = torch.Generator().manual_seed(number)
    vision = longer * torch.randn(400, 16, generator=generator) + 1
    text = torch.randn(400, 16, generator=generator)
    # Of very different lengths, as they were seen: their deviation hides all but the longest from outlier handling.
    vision[:spiking, 0] += torch.linspace(300, 1500, spiking)
    return PooledLayer.of(TokenFeatures(number, vision, text, (400,), (400,)), MirConfig()).layer_distance()


def test_spiking_tokens_that_outlier_handling_leaves_are_told_with_their_layers() -> None:
    layers = [layer(number, spiking=14 if number in (2, 3, 5) else 0) for number in range(1, 7)]
    assert any(one.n_vision_outliers < 14 for one in layers if one.layer in (2, 3, 5))
    [sentence] = fragilities(layers, {})
    assert "vision" in sentence and "layers 2-3, 5" in sentence


def test_a_spike_in_a_layer_that_counts_for_little_is_not_told() -> None:
    layers = [layer(number, longer=30) for number in range(1, 7)]
    quiet = dataclasses.replace(layers[0], longest_vision=0.9)
    assert fragilities([dataclasses.replace(quiet, distance=layers[0].distance / 100), *layers[1:]], {}) == ()
    assert len(fragilities([quiet, *layers[1:]], {})) == 1


@pytest.mark.parametrize(("n_groups", "error", "told"), [(100, 0.021, 0), (10, 0.0818, 0), (80, 0.084, 1), (5, 0.4, 0)])
def test_a_standard_error_far_beyond_the_usual_is_told(n_groups: int, error: float, told: int) -> None:
    assert len(fragilities([layer(1)], {"n_groups": n_groups, "standard_error": error})) == told


def test_shares_of_length_add_up_over_layers() -> None:
    layers = [layer(1), layer(2, longer=5)]
    terms = [(one.length_vision - one.length_text) ** 2 for one in layers]  # type: ignore[operator]
    total = math.fsum(one.distance for one in layers)
    assert length_share(layers) == pytest.approx(math.fsum(terms) / total)
    rest = [2 * one.length_vision * one.length_text for one in layers]  # type: ignore[operator]
    at_equal_length = math.fsum(
        2 * (one.distance - term) / two for one, term, two in zip(layers, terms, rest, strict=True)
    )
    assert mir_at_equal_length(layers) == pytest.approx(math.log10(at_equal_length))


def test_results_of_earlier_versions_have_no_diagnostics() -> None:
    old = dataclasses.replace(layer(1), length_vision=None, length_text=None, longest_vision=None, longest_text=None)
    assert (length_share([old]), mir_at_equal_length([old]), fragilities([old], {})) == (None, None, ())


def test_many_fragile_values_are_counted() -> None:
    assert len(fragile_values([(f"step-{k}", ("why",)) for k in range(9)])) == 4
    assert fragile_values([("a", ()), ("b", ("Why.",))]) == ["the MIR of b is fragile: Why."]
