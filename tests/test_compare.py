from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mir_plugin.cli import app
from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.measurement.measure import measure
from mir_plugin.metric.uncertainty import half_width, influences_of, uncertainty
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.comparison import compare_results

from toy import ToyAdapter, toy_samples


@pytest.fixture(scope="module")
def results() -> tuple[MirResult, MirResult]:
    samples = SampleSet(tuple(toy_samples(8)))
    near, far = (measure(ToyAdapter(seed=seed), samples, checkpoint=f"toy-{seed}") for seed in (0, 1))
    return near, far


def with_influences(result: MirResult, influences: list[float], mir: float) -> MirResult:
    """The result with other numbers: one layer, whose distance and influences are given in units of MIR."""
    distance = 10**mir
    spread = uncertainty([distance], [[u * distance * math.log(10) for u in influences]])
    layer = dataclasses.replace(result.layers[0], distance=distance)
    return dataclasses.replace(result, mir=mir, layers=(layer,), uncertainty=spread, n_samples=len(influences))


def test_the_difference_is_taken_sample_by_sample(results: tuple[MirResult, MirResult]) -> None:
    # Both results move together from sample to sample: each alone is uncertain, their difference is not.
    shared = [0.3, -0.1, 0.2, -0.4]
    a = with_influences(results[0], shared, mir=2.0)
    b = with_influences(results[1], [u + e for u, e in zip(shared, [0.01, -0.01, 0.01, -0.01], strict=True)], mir=1.9)
    paired = compare_results(a, b)
    assert paired.paired
    assert paired.mir.difference == pytest.approx(-0.1)
    assert paired.mir.standard_error == pytest.approx(math.sqrt(4 / 3 * 4 * 0.01**2), rel=1e-3)
    assert paired.mir.low == pytest.approx(-0.1 - half_width(paired.mir.standard_error or 0, 4))
    assert paired.mir.distinguishable
    assert paired.verdict.startswith("distinguishable: B has the lower, better MIR")
    assert compare_results(b, a).verdict.startswith("distinguishable: A has the lower, better MIR")


def test_an_interval_around_zero_is_not_distinguishable(results: tuple[MirResult, MirResult]) -> None:
    a = with_influences(results[0], [0.3, -0.1, 0.2, -0.4], mir=2.0)
    b = with_influences(results[1], [-0.3, 0.1, 0.2, 0.0], mir=1.9)
    comparison = compare_results(a, b)
    assert comparison.mir.distinguishable is False
    assert comparison.verdict.startswith("not distinguishable on these samples")


def test_a_result_does_not_differ_from_itself(results: tuple[MirResult, MirResult]) -> None:
    comparison = compare_results(results[0], results[0])
    assert comparison.mir.difference == 0
    assert comparison.mir.standard_error == 0
    assert comparison.mir.distinguishable is False
    assert len(comparison.layers) == 3


def test_influences_of_measured_checkpoints_pair_up(results: tuple[MirResult, MirResult]) -> None:
    near, far = results
    comparison = compare_results(near, far)
    u, v = (influences_of(one.uncertainty, "result") for one in results)
    by_hand = math.sqrt(8 / 7 * sum((x - y) ** 2 for x, y in zip(u, v, strict=True)))
    assert comparison.mir.standard_error == pytest.approx(by_hand)
    assert [layer.difference for layer in comparison.layers] == pytest.approx(
        [b.distance - a.distance for a, b in zip(near.layers, far.layers, strict=True)]
    )


def test_other_versions_and_other_checkpoints_stay_comparable(results: tuple[MirResult, MirResult]) -> None:
    near, far = results
    assert near.fingerprints["checkpoint"] != far.fingerprints["checkpoint"]
    newer = dataclasses.replace(far, fingerprints={**far.fingerprints, "versions": "another", "request": "x"})
    assert compare_results(near, newer).differing == ()


@pytest.mark.parametrize(
    ("n", "config", "words"),
    [
        (7, MirConfig(), r"samples \(8 of .* and 7 of"),
        (8, MirConfig(outliers="none"), r"outliers \('replace' and 'none'\)"),
        (8, MirConfig(n_sigma=4.0), r"n_sigma \(3.0 and 4.0\)"),
    ],
)
def test_other_samples_or_another_protocol_are_refused_by_name(
    results: tuple[MirResult, MirResult], n: int, config: MirConfig, words: str
) -> None:
    other = measure(ToyAdapter(seed=1), SampleSet(tuple(toy_samples(n))), config, checkpoint="other")
    with pytest.raises(MirError, match=words):
        compare_results(results[0], other)
    assert compare_results(results[0], other, anyway=True).paired == (n == 8)


def test_another_prompt_is_another_protocol(results: tuple[MirResult, MirResult]) -> None:
    adapter = ToyAdapter(seed=1)
    adapter.facts["prompt_template"] = "USER: <image>"
    other = measure(adapter, SampleSet(tuple(toy_samples(8))), checkpoint="other")
    with pytest.raises(MirError, match=r"prompt template \('toy' and 'USER: <image>'\)"):
        compare_results(results[0], other)


def test_on_other_samples_the_errors_add_in_squares(results: tuple[MirResult, MirResult]) -> None:
    a = with_influences(results[0], [0.3, -0.3], mir=2.0)
    b = with_influences(results[1], [0.4, -0.4], mir=1.9)
    b = dataclasses.replace(b, fingerprints={**b.fingerprints, "samples": "others"})
    comparison = compare_results(a, b, anyway=True)
    assert comparison.mir.standard_error == pytest.approx(math.sqrt(2 / 1 * 2) * 0.5, rel=1e-4)


def test_without_uncertainty_there_is_a_difference_and_no_verdict(results: tuple[MirResult, MirResult]) -> None:
    bare = dataclasses.replace(results[1], uncertainty={})
    comparison = compare_results(results[0], bare)
    assert comparison.mir.difference == pytest.approx(bare.mir - results[0].mir)
    assert comparison.mir.distinguishable is None
    assert "unknown" in comparison.verdict


def test_checkpoints_of_different_depth_are_compared_in_total_only(results: tuple[MirResult, MirResult]) -> None:
    deeper = measure(ToyAdapter(n_layers=4), SampleSet(tuple(toy_samples(8))), checkpoint="deeper")
    assert compare_results(results[0], deeper).layers == ()


def compared(*arguments: Any) -> str:
    run = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def test_the_command_takes_files_and_folders_and_prints_text_or_json(
    results: tuple[MirResult, MirResult], tmp_path: Path
) -> None:
    near, far = (result.save(tmp_path / result.checkpoint / "mir.json") for result in results)
    text = compared(near.parent, far)
    assert "paired over the same samples" in text
    assert "distinguishable" in text
    assert f"{results[0].mir:.4f}" in text
    found = json.loads(compared(near, far.parent, "--json"))
    expected = compare_results(*results)
    assert found["mir"]["difference"] == pytest.approx(expected.mir.difference)
    assert found["mir"]["standard_error"] == pytest.approx(expected.mir.standard_error)
    assert found["distinguishable"] == expected.mir.distinguishable
    assert (found["paired"], found["differing"], len(found["layers"])) == (True, [], 3)


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(MirError, match=r"nothing.mir\.json"):
        CliRunner().invoke(
            app, ["compare", str(tmp_path / "nothing" / "mir.json"), str(tmp_path)], catch_exceptions=False
        )


JUNK = (None, "x", -1, {}, [], True, [None], {"a": None}, 99, 1e308)
FULL_INPUTS = {
    "token_ids": "a b c", "positions": "a b c", "pixels": "a b c", "pixel_shapes": {"3x4x4": 3}, "n_vision_tokens": 12,
    "n_text_tokens": 9, "n_cut_texts": 1, "weights_dtype": "float32", "compute_dtype": "float32", "attention": "sdpa",
    "host_settings": {"min_pixels": [4, 8]},
}  # fmt: skip


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value inside a JSON value; of a list's entries the first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, one in inside:
        yield (*place, name)
        yield from places_in(one, (*place, name))


def test_whatever_stands_in_a_result_is_compared_or_named(results: tuple[MirResult, MirResult]) -> None:
    whole = dataclasses.replace(results[0], inputs=FULL_INPUTS)
    document = json.loads(whole.to_json())
    n_read = n_refused = 0
    for place in places_in(document):
        for junk in JUNK:
            changed = json.loads(whole.to_json())
            holder = functools.reduce(lambda inside, name: inside[name], place[:-1], changed)
            holder[place[-1]] = junk
            try:
                result = MirResult.from_json(json.dumps(changed))
            except MirError:
                n_refused += 1
                continue
            n_read += 1
            for one, other in ((whole, result), (result, whole)):
                protocol_differences(one, other)
                allowed_differences(one, other)
                with contextlib.suppress(MirError):
                    compare_results(one, other)
    assert n_read > 100 and n_refused > 100
