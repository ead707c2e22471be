"""The metric over chunks, marked outliers and processes, held to its plain statement in ``mir_plugin.metric``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mir_plugin.measurement.measure
import mir_plugin.measurement.pooled
from mir_plugin.engine.memory import estimate_memory
from mir_plugin.engine.replay import check_replay
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import layers_held, measure
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.measurement.pooled_tokens import pooled_median, pooled_moments
from mir_plugin.metric.frechet import WAYS, transport
from mir_plugin.metric.influence import influences_through_scale, sample_influences, token_influences
from mir_plugin.metric.layer import layer_distance
from mir_plugin.metric.moments import moments
from mir_plugin.metric.normalize import (
    coordinate_median,
    outlier_rows,
    remove_outliers,
    replace_outliers,
    row_norms,
    text_centric_scale,
)
from mir_plugin.processes import Group
from mir_plugin.results import LayerDistance, MirConfig
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import TokenFeatures

from tolerances import HANGS
from toy import ToyAdapter, toy_samples

Pair = tuple[Tensor, Tensor]


class Meeting:
    """Where the threads of a fake group put what they send and wait for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=HANGS)
        self.sent: list[Any] = [None] * size


class ThreadGroup(Group):
    """A group whose processes are threads of this one: every exchange goes through a list."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__(rank, size)
        self.meeting = meeting

    def all_gather_object(self, value: Any) -> list[Any]:
        self.meeting.sent[self.rank] = value
        self.meeting.barrier.wait()
        everything = list(self.meeting.sent)
        self.meeting.barrier.wait()
        return everything

    def all_reduce(self, value: Tensor) -> Tensor:
        return torch.stack(self.all_gather_object(value)).sum(dim=0)

    def all_gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self.all_gather_object(rows))

    def all_to_all_columns(self, rows: Tensor) -> Tensor:
        return torch.cat([one.tensor_split(self.size, dim=1)[self.rank] for one in self.all_gather_object(rows)])


def in_threads(size: int, work: Any) -> list[Any]:
    """What ``work(group)`` returned in each process of a fake group."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: work(ThreadGroup(rank, size, meeting)), range(size)))


def features_of(samples: Sequence[Pair], d: int, dtype: torch.dtype) -> TokenFeatures:
    nothing = [torch.zeros(0, d, dtype=dtype)]
    vision, text = [v for v, _ in samples], [t for _, t in samples]
    counts = tuple(map(len, vision)), tuple(map(len, text))
    return TokenFeatures(1, torch.cat(vision or nothing), torch.cat(text or nothing), *counts)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Pair], int, torch.dtype]:
    """Samples of one layer: correlated coordinates of different spread, massive coordinates, outliers, few tokens."""
    d = draw(st.integers(1, 12))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    spread = torch.logspace(0, -draw(st.floats(0, 2)), d, dtype=torch.float64)
    offset = torch.zeros(d, dtype=torch.float64)
    offset[0] = draw(st.sampled_from([0.0, 1.0, 300.0]))
    counts = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=2, max_size=7))
    samples = []
    for n_vision, n_text in counts:
        mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
        vision = torch.randn(n_vision, d, generator=generator, dtype=torch.float64) @ mixing * spread + offset
        text = torch.randn(n_text, d, generator=generator, dtype=torch.float64) * spread.flip(0) + 0.5
        samples.append((vision, text))
    for sample, modality in draw(st.lists(st.tuples(st.integers(0, len(counts) - 1), st.integers(0, 1)), max_size=3)):
        samples[sample][modality][0] *= 50  # an outlier
    return [(vision.to(dtype), text.to(dtype)) for vision, text in samples], d, dtype


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    layer=layers(),
    outliers=st.sampled_from(["replace", "remove", "none"]),
    n_sigma=st.sampled_from([3.0, 1.0]),
    normalize=st.booleans(),
    size=st.integers(1, 3),
    chunk_rows=st.sampled_from([5, 4096]),
    way=st.sampled_from(["eigenvalues", "polar"]),
)
def test_pooled_layers_equal_the_plain_metric(
    layer: tuple[list[Pair], int, torch.dtype],
    outliers: Any,
    n_sigma: float,
    normalize: bool,
    size: int,
    chunk_rows: int,
    way: Any,
) -> None:
    samples, d, dtype = layer
    config = MirConfig(outliers=outliers, n_sigma=n_sigma, normalize=normalize)
    whole = features_of(samples, d, dtype)

    def work(group: Group) -> tuple[LayerDistance, list[float]]:
        pooled = PooledLayer.of(features_of(group.shard(samples), d, dtype), config, group)
        maps = pooled.transport()
        found = pooled.layer_distance(maps.trace_term)
        return found, pooled.influences(maps, found.distance).tolist()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mir_plugin.measurement.pooled_tokens, "CHUNK_ROWS", chunk_rows)
        try:
            plain = layer_distance(whole.vision, whole.text, outliers=outliers, n_sigma=n_sigma, normalize=normalize)
        except MirError:
            with pytest.raises(MirError):
                in_threads(size, work)
            return
        patch.setitem(WAYS, "cpu", way)
        answers = in_threads(size, work)
    influences, summands = plain_influences(samples, config, plain.item())
    for found, of_samples in answers:
        few = min(found.n_vision_tokens, found.n_text_tokens) <= d + found.n_vision_outliers + found.n_text_outliers
        # With few tokens a root of an eigenvalue that is 0 but for rounding counts. Relative to the terms, because the
        # distance of two nearly equal sets is a small difference of them.
        terms = found.mean_term + found.trace_vision + found.trace_text
        assert found.distance == pytest.approx(plain.item(), abs=(1e-7 if few else 1e-9) * terms)
        # The pooled influences are sums of float32 products.
        assert of_samples == pytest.approx(influences, abs=1e-5 * summands)


def plain_influences(samples: list[Pair], config: MirConfig, distance: float) -> tuple[list[float], float]:
    """The influences from whole tensors, and the size of what they are sums of."""
    prepared, owners = zip(*(prepared_tokens([pair[m] for pair in samples], config) for m in (0, 1)), strict=True)
    both = [moments(tokens) for tokens in prepared]
    maps = transport(*both)
    found, summands = torch.zeros(len(samples), dtype=torch.float64), distance
    for tokens, owner, own, other, factor in zip(prepared, owners, both, both[::-1], maps[:2], strict=True):
        centred = tokens - own.mean
        carried = (centred @ factor.t()).square().sum(dim=1)
        added = token_influences(centred, carried, own.mean - other.mean, own.n)
        n = torch.bincount(owner, minlength=len(samples))
        found += sample_influences(torch.zeros_like(found).index_add_(0, owner, added), n)
        summands += (added.abs().sum() + (centred.square().sum() + carried.sum()) / (own.n - 1)).item()
    if config.normalize:
        scale = text_centric_scale(torch.cat([text for _, text in samples])).item()
        lengths = torch.tensor([row_norms(text).sum() for _, text in samples], dtype=torch.float64)
        n_text = torch.tensor([len(text) for _, text in samples])
        found = found * scale**2 + influences_through_scale(distance, lengths, n_text)
        summands = (summands - distance) * scale**2 + distance
    return found.tolist(), summands


def prepared_tokens(of_samples: list[Tensor], config: MirConfig) -> tuple[Tensor, Tensor]:
    """All tokens of a modality after outlier handling, and the sample of each."""
    tokens = torch.cat(of_samples).double()
    owner = torch.repeat_interleave(torch.tensor([len(one) for one in of_samples]))
    if config.outliers == "replace":
        return replace_outliers(tokens, config.n_sigma), owner
    if config.outliers == "remove":
        return remove_outliers(tokens, config.n_sigma), owner[~outlier_rows(row_norms(tokens), config.n_sigma)]
    return tokens, owner


def test_replaced_rows_count_as_the_replacement_and_the_input_stays() -> None:
    features = torch.arange(12.0).view(4, 3)
    before = features.clone()
    by_hand = features.clone()
    by_hand[1] = 100.0
    one = pooled_moments(features, torch.tensor([False, True, False, False]), torch.full((3,), 100.0))
    torch.testing.assert_close(one.cov, by_hand.double().T.cov())
    assert torch.equal(features, before)


@pytest.mark.parametrize("n_replaced", [1, 3])
def test_a_root_has_as_many_rows_as_the_covariance_has_rank(n_replaced: int) -> None:
    features = torch.randn(9, 12, generator=torch.Generator().manual_seed(5))
    replaced = torch.zeros(9, dtype=torch.bool)
    replaced[[7, 2, 4][:n_replaced]] = True
    one = pooled_moments(features, replaced, torch.full((12,), 0.5))
    assert one.root is not None
    assert one.root.shape == (9 - n_replaced, 12)
    torch.testing.assert_close(one.root.T @ one.root, one.cov)
    assert torch.linalg.matrix_rank(one.root) == len(one.root) == torch.linalg.matrix_rank(one.cov)


def test_removed_rows_leave_their_sample_s_count() -> None:
    vision, text = torch.randn(2, 90, 8, generator=torch.Generator().manual_seed(0)).unbind()
    vision[3] *= 40
    text[5] *= 40
    layer = TokenFeatures(1, vision, text, (2, 88), (60, 30))
    pooled = PooledLayer.of(layer, MirConfig(outliers="remove"))
    assert pooled.vision.counts.tolist() == [2, 87]
    assert pooled.text.counts.tolist() == [59, 30]


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (7, 3), (10, 600)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_pooled_median_is_that_of_the_coordinates_and_leaves_the_features(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = features.clone()
    assert torch.equal(pooled_median(features), coordinate_median(features))
    assert torch.equal(features, before)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for an accelerator: numbers read, masks counted, checks of errors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        counted = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in ("_local_scalar_dense", "nonzero", "equal", "_linalg_check_errors", "_unique2", "unique_dim") or (
            masks or counted
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on a CPU's numbers."""
    monkeypatch.setitem(WAYS, "cpu", "polar")
    for module in (mir_plugin.measurement.pooled, mir_plugin.measurement.pooled_tokens):
        monkeypatch.setattr(module, "reads_early", lambda device: False)


def layer_with_outliers(n: int, d: int) -> TokenFeatures:
    generator = torch.Generator().manual_seed(3)
    samples = [(torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) + 1) for _ in range(4)]
    samples[1][0][0] *= 50
    samples[2][1][3] *= 50
    return features_of(samples, d, torch.float32)


def test_a_layer_on_an_accelerator_waits_for_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features = layer_with_outliers(40, 12)
    expected = PooledLayer.of(features, MirConfig())
    distance = expected.layer_distance()
    influences = expected.influences(expected.transport(), distance.distance)
    as_on_an_accelerator(monkeypatch)
    with Waits() as waits:
        layer = PooledLayer.of(features, MirConfig())
        of_layer = layer.decomposed(with_maps=True)
        numbers, sums = of_layer.numbers, layer.sample_sums(of_layer.sizes, of_layer.to_text, of_layer.to_vision)
    assert waits.found == ["_local_scalar_dense"]  # whether a covariance was singular
    found = layer.distance_of(numbers.tolist(), of_layer.route)
    assert found.n_vision_outliers == distance.n_vision_outliers > 0
    assert found.distance == pytest.approx(distance.distance, rel=1e-9)
    # Influences are float32 products.
    assert layer.influences_of(sums, found.distance, found.scale) == pytest.approx(influences, rel=1e-4, abs=1e-5)


def test_unusable_features_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_an_accelerator(monkeypatch)
    features = layer_with_outliers(40, 12)
    features.text[7, 2] = float("nan")
    with pytest.raises(MirError, match=r"1 of 160 text tokens at layer 1 .* sample number 0"):
        PooledLayer.of(features, MirConfig()).layer_distance()
    features.text.zero_()
    with pytest.raises(MirError, match="all text tokens have norm zero"):
        PooledLayer.of(features, MirConfig()).layer_distance()


@pytest.mark.parametrize("with_uncertainty", [True, False])
def test_statistics_beside_the_next_layer_are_those_in_turn(
    monkeypatch: pytest.MonkeyPatch, with_uncertainty: bool
) -> None:
    samples = SampleSet(tuple(toy_samples(4)))
    in_turn = measure(ToyAdapter(), samples, checkpoint="toy", with_uncertainty=with_uncertainty)
    monkeypatch.setattr(mir_plugin.measurement.measure, "layers_held", lambda *_: (2, 1))
    beside = measure(ToyAdapter(), samples, checkpoint="toy", with_uncertainty=with_uncertainty)
    assert beside.engine["overlapped"] and not in_turn.engine["overlapped"]
    assert beside.layers == in_turn.layers
    assert beside.uncertainty == in_turn.uncertainty
    assert beside.engine["memory_estimate"]["features"] == 2 * in_turn.engine["memory_estimate"]["features"]


@pytest.mark.parametrize(
    ("n_layers_of_features", "held"), [(0, (1, 1)), (1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 3)), (9, (2, 3))]
)
def test_as_many_layers_of_features_are_held_as_the_device_has_room_for(
    n_layers_of_features: int, held: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, samples = ToyAdapter(), toy_samples(4)
    check = check_replay(adapter, samples[0])
    estimate = estimate_memory(adapter, samples, check)
    free = estimate.statistics + n_layers_of_features * estimate.features
    monkeypatch.setattr(mir_plugin.measurement.measure, "free_memory", lambda _: free)
    assert layers_held(adapter, samples, check, most=3) == held


def test_small_decompositions_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = mir_plugin.measurement.pooled.transport
    monkeypatch.setattr(
        mir_plugin.measurement.pooled, "transport", lambda *a: seen.append(torch.get_num_threads()) or plain(*a)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        layer = PooledLayer.of(layer_with_outliers(40, 12), MirConfig())
        layer.transport()
        monkeypatch.setattr("mir_plugin.engine.threads.WIDEST_ON_ONE_THREAD", 8)
        layer.transport()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]
