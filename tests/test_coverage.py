"""Standard errors of sample sets as people have them: repeated content, texts of very unequal length, huge features."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.coverage import KINDS, coverage, sample_set
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.uncertainty import heavy_groups, standard_error, uncertainty
from mir_plugin.results import MirConfig
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import TokenFeatures

N_SETS = 150
ONE_LONG, REPEATED = KINDS[4], KINDS[5]


@pytest.mark.parametrize("kind", [ONE_LONG, REPEATED], ids=lambda kind: kind.name)
def test_intervals_cover_what_they_should(kind: object) -> None:
    found = coverage(kind, n=20, d=6, n_sets=N_SETS)  # type: ignore[arg-type]
    covered, ratio = found["as measured"]
    # 95 % of 150 have a standard deviation of 1.8 %; the jackknife of 20 samples is a few per cent off itself.
    assert covered == pytest.approx(0.95, abs=3 * 0.018 + 0.02)
    # The spread of 150 values is known to 6 %; three of these.
    assert ratio == pytest.approx(1, abs=0.18)
    simpler = found["derivatives" if kind is ONE_LONG else "ungrouped"]
    assert simpler[0] < 0.85, "the simpler way must go on failing here, or this test shows nothing"


def test_leaving_out_a_heavy_sample_gives_the_distance_of_the_others() -> None:
    features, groups = sample_set(ONE_LONG, 9, 5, seed=1)
    config = MirConfig(outliers="none")
    layer = PooledLayer.of(features, config)
    left_out = torch.zeros(9, dtype=torch.bool)
    left_out[0] = True
    n_vision, n_text = features.vision_counts[0], features.text_counts[0]
    others = TokenFeatures(
        1, features.vision[n_vision:], features.text[n_text:], features.vision_counts[1:], features.text_counts[1:]
    )
    expected = PooledLayer.of(others, config).layer_distance().distance
    # Float64 throughout; moments less those of one sample lose the digits that it outweighs the others by, 40 times.
    assert layer.distance_without(left_out) == pytest.approx(expected, rel=1e-11)
    maps = layer.transport()
    distance = layer.layer_distance(maps.trace_term).distance
    assert heavy_groups(groups, features.vision_counts, features.text_counts) == (0,)
    influences = layer.group_influences(maps, distance, groups, [0])
    assert influences[0] == pytest.approx(8 / 9 * (distance - expected), rel=1e-9)
    stored = uncertainty([distance], [influences], 9, [0])
    assert "delete-a-group jackknife for 1 of 9" in stored["method"]
    of_mir = float(stored["influences"].split()[0])
    # As stored, with five digits.
    assert of_mir == pytest.approx(8 / 9 * (math.log10(distance) - math.log10(expected)), rel=1e-4)


def test_a_modality_that_only_one_sample_has_enough_of_keeps_its_derivative() -> None:
    text = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    features = TokenFeatures(1, torch.randn(8, 3), text, (4, 4), (3, 1))
    layer = PooledLayer.of(features, MirConfig(outliers="none"))
    assert layer.distance_without(torch.tensor([True, False])) is None
    maps = layer.transport()
    assert all(map(math.isfinite, layer.group_influences(maps, 1.0, [0, 1], [0])))


@pytest.mark.parametrize("size", [2.0**70, 2.0**-70])
def test_influences_of_huge_and_tiny_features_keep_their_digits(size: float) -> None:
    features, groups = sample_set(KINDS[1], 6, 5, seed=2)
    large = TokenFeatures(1, features.vision * size, features.text * size, features.vision_counts, features.text_counts)
    plain, scaled = (PooledLayer.of(one, MirConfig()) for one in (features, large))
    found = [layer.group_influences(layer.transport(), 1.0, groups) for layer in (plain, scaled)]
    # A power of two changes no digit, and text-centric scaling takes it out.
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert standard_error(found[1]) > 0


def samples(images: str, texts: str) -> SampleSet:
    return SampleSet(
        tuple(Sample(str(i), image.encode(), text) for i, (image, text) in enumerate(zip(images, texts, strict=True)))
    )


@pytest.mark.parametrize(
    ("images", "texts", "expected"),
    [
        ("abcd", "wxyz", (0, 1, 2, 3)),
        ("abab", "wxyz", (0, 1, 0, 1)),
        ("abcd", "wxwz", (0, 1, 0, 2)),
        ("abac", "wxyx", (0, 1, 0, 1)),  # over two steps: the images of 0 and 2, the texts of 1 and 3
        ("aaaa", "wxyz", (0, 1, 2, 3)),  # one image for all: what varies are the texts
        ("aabb", "wxwx", (0, 0, 1, 1)),  # crossed: everything hangs together, so by the rarer of the two
        ("aaaa", "wwww", (0, 0, 0, 0)),
    ],
)
def test_samples_that_share_an_image_or_a_text_are_one_group(images: str, texts: str, expected: tuple[int]) -> None:
    assert samples(images, texts).groups == expected


def test_the_fingerprint_of_a_set_is_what_it_was() -> None:
    # Stored in every result: of these samples since the first version.
    assert samples("ab", "wx").fingerprint.startswith(FINGERPRINT)


FINGERPRINT = "c428533ac2fca8cd"


def test_copies_of_a_few_samples_have_the_error_of_the_few() -> None:
    distances, influences = [10.0], [[3.0, -1.0, -2.0]]
    once = uncertainty(distances, influences)
    # Ten copies of each: a copy has a tenth of the influence, and its group all of it.
    copies = uncertainty(distances, influences, n_samples=30)
    assert copies["standard_error"] == once["standard_error"]
    assert "30 in 3 groups" in copies["method"]
    assert copies["n_groups"] == 3
    alike = uncertainty(distances, [[0.0]], n_samples=30)
    assert "30 samples of the same content" in alike["not_computed"]
