"""Real gloo processes on this machine; each case forks them once and brings back what every process returned."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import together

from mir_plugin.engine.memory import estimate_memory
from mir_plugin.engine.progress import progress
from mir_plugin.engine.replay import check_replay
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.measurement.pooled_tokens import pooled_median
from mir_plugin.measurement.statistics import Statistics
from mir_plugin.metric.normalize import coordinate_median
from mir_plugin.model_adapters import Checkpoint
from mir_plugin.processes import (
    ALONE,
    Group,
    current_group,
    launched_group,
    own_device,
)
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import TokenFeatures

from tolerances import HANGS, SAME_FEATURES
from toy import ToyAdapter, toy_samples

pytestmark = [
    # The forked processes compute with one thread, so that their features are those of this process to the last bit.
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux"),
]


def layer_of(samples: list[tuple[torch.Tensor, torch.Tensor]], d: int) -> TokenFeatures:
    nothing = [torch.zeros(0, d)]
    vision, text = [v for v, _ in samples], [t for _, t in samples]
    return TokenFeatures(
        1, torch.cat(vision or nothing), torch.cat(text or nothing), tuple(map(len, vision)), tuple(map(len, text))
    )


def random_samples(n: int, d: int, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(n)
    samples = [
        (2 * torch.randn(9, d, generator=generator) + 1, torch.randn(4 + i % 3, d, generator=generator))
        for i in range(n)
    ]
    samples[-1][0][2] *= 50  # outliers, so that the medians count
    samples[0][1][1] *= 50
    return [(vision.to(dtype), text.to(dtype)) for vision, text in samples]


@pytest.mark.parametrize("size", [2, 3])
def test_statistics_of_shards_equal_those_of_one_process(size: int, tmp_path: Path) -> None:
    cases = [
        (samples, d, dtype, MirConfig(outliers=outliers))  # type: ignore[arg-type]
        for samples, d, dtype, outliers in [
            (7, 6, torch.float32, "replace"),  # uneven shards, width no multiple of three
            (7, 6, torch.bfloat16, "remove"),
            (5, 600, torch.float32, "replace"),  # fewer tokens than dimensions, several blocks of coordinates
            (7, 50, torch.float32, "replace"),  # fewer text tokens than dimensions, one of them an outlier
            (2, 4, torch.float32, "replace"),  # with three processes one has no sample
            (1, 4, torch.float16, "none"),
        ]
    ]

    def work(group: Group) -> list[Any]:
        return [
            PooledLayer.of(layer_of(list(group.shard(random_samples(n, d, dtype))), d), config, group).layer_distance()
            for n, d, dtype, config in cases
        ]

    answers = together(size, work, tmp_path)
    assert not any(isinstance(answer, Exception) for answer in answers), answers
    for index, (n, d, dtype, config) in enumerate(cases):
        alone = dataclasses.asdict(PooledLayer.of(layer_of(random_samples(n, d, dtype), d), config).layer_distance())
        for answer in answers:
            found = dataclasses.asdict(answer[index])
            assert {k: v for k, v in found.items() if isinstance(v, int | str)} == {
                k: v for k, v in alone.items() if isinstance(v, int | str)
            }
            numbers = {k: v for k, v in alone.items() if isinstance(v, float)}
            assert {k: found[k] for k in numbers} == pytest.approx(numbers, rel=SAME_FEATURES)


def test_medians_are_taken_over_the_rows_of_all_processes(tmp_path: Path) -> None:
    features = torch.randn(11, 1030, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = coordinate_median(features)
    # Numbers, not tensors: a tensor would come back by reference to memory of a process that has ended.
    for answer in together(3, lambda group: pooled_median(features[group.rank * 4 :][:4], group).tolist(), tmp_path):
        assert answer == expected.tolist()


def measured(group: Group, n: int) -> MirResult:
    return measure(ToyAdapter(), SampleSet(tuple(toy_samples(n))), checkpoint="toy", group=group)


@pytest.mark.parametrize(("size", "n"), [(2, 5), (3, 2)])
def test_a_whole_measurement_is_that_of_one_process_on_every_process(size: int, n: int, tmp_path: Path) -> None:
    alone = measured(ALONE, n)
    answers = together(size, lambda group: measured(group, n), tmp_path)
    found = answers[0]
    assert answers == [found] * size
    assert (found.engine["processes"], found.n_samples) == (size, n)
    assert found.engine["layers_together"] == min(size, n), "a process without samples holds nobody back"
    assert found.fingerprints == alone.fingerprints
    # Forward passes run sample by sample on the same kernels and one thread, so only the statistics can differ.
    assert found.mir == pytest.approx(alone.mir, rel=SAME_FEATURES)
    assert [layer.distance for layer in found.layers] == pytest.approx(
        [a.distance for a in alone.layers], rel=SAME_FEATURES
    )
    assert found.uncertainty["standard_error"] == pytest.approx(alone.uncertainty["standard_error"], rel=1e-5)
    assert found.uncertainty["influences"].split()[-1] == alone.uncertainty["influences"].split()[-1]


def heavy_samples(n: int) -> SampleSet:
    """One text is much longer than the rest, so that its sample is left out for real."""
    first, *rest = toy_samples(n)
    return SampleSet((dataclasses.replace(first, text=first.text * 12), *rest))


@pytest.mark.parametrize("with_uncertainty", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_each_process_decomposes_its_share_of_the_layers(size: int, with_uncertainty: bool, tmp_path: Path) -> None:
    samples, n_layers = heavy_samples(7), 5  # rounds of two and three layers do not fill up
    adapter = ToyAdapter(n_layers=n_layers)

    def work(group: Group) -> tuple[MirResult, list[int]]:
        decomposed: list[int] = []
        plain = PooledLayer.decomposed

        def counted(layer: PooledLayer, **options: Any) -> Any:
            decomposed.append(layer.layer)
            return plain(layer, **options)

        PooledLayer.decomposed = counted  # type: ignore[method-assign]  # in a process of its own
        result = measure(adapter, samples, checkpoint="toy", group=group, with_uncertainty=with_uncertainty)
        return result, decomposed

    alone = measure(adapter, samples, checkpoint="toy", with_uncertainty=with_uncertainty)
    answers = together(size, work, tmp_path)
    assert not any(isinstance(answer, Exception) for answer in answers), answers
    assert [layers for _, layers in answers] == [list(range(1 + rank, n_layers + 1, size)) for rank in range(size)]
    found = answers[0][0]
    assert found.engine["layers_together"] == size
    share = Group(0, size).shard(samples.samples)
    of_one_layer = estimate_memory(adapter, share, check_replay(adapter, share[0]))
    assert found.engine["memory_estimate"]["features"] == size * of_one_layer.features
    for one, other in zip(found.layers, alone.layers, strict=True):
        numbers = {name: value for name, value in vars(other).items() if isinstance(value, float)}
        # Sums over other shares of the same tokens: some units in the last place, of terms up to the traces.
        assert {name: vars(one)[name] for name in numbers} == pytest.approx(numbers, rel=1e-12)
        assert one.trace_route == other.trace_route
    if with_uncertainty:
        assert "delete-a-group" in found.uncertainty["method"]
        assert found.uncertainty["method"] == alone.uncertainty["method"]
        # Products of float32, summed in another order where shares end.
        assert found.uncertainty["standard_error"] == pytest.approx(alone.uncertainty["standard_error"], rel=1e-5)


def test_each_layer_has_the_route_by_which_its_own_process_decomposed_it(tmp_path: Path) -> None:
    full = random_samples(8, 6)
    flat = [(v * torch.arange(6).sign(), t * torch.arange(6).sign()) for v, t in full]  # singular covariances

    def work(group: Group) -> list[str]:
        config = MirConfig(outliers="none")
        statistics = Statistics(torch.device("cpu"), config, (), group, n_behind=0, n_together=group.size)
        for number, samples in enumerate((full, flat), start=1):
            statistics.add(dataclasses.replace(layer_of(group.shard(samples), 6), layer=number), ())
        return [one.distance.trace_route for one in statistics.rest()]

    alone = work(ALONE)
    assert len(set(alone)) == 2
    assert together(2, work, tmp_path) == [alone] * 2


def test_layers_are_taken_together_as_the_process_with_the_least_memory_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mir_plugin.measurement.measure.layers_held", lambda *_: (1, 2 - current_group().rank))
    for found in together(2, lambda group: measured(group, 5), tmp_path):
        assert found.engine["layers_together"] == 1


def test_a_process_that_fails_ends_the_others_with_its_cause(tmp_path: Path) -> None:
    broken = [*toy_samples(3), Sample("bad", 5, "text")]  # type: ignore[arg-type]

    class Fragile(ToyAdapter):
        def encode(self, samples: list[Sample]) -> Any:
            if samples[0].sample_id == "bad":
                raise MirError("sample bad: the image cannot be read")
            return super().encode(samples)

    def work(group: Group) -> MirResult:
        return measure(Fragile(), StubSet(broken), checkpoint="toy", group=group)  # type: ignore[arg-type]

    healthy, failing = together(2, work, tmp_path)
    assert isinstance(failing, MirError)
    assert str(failing) == "sample bad: the image cannot be read"
    assert isinstance(healthy, MirError)
    assert "process 1 of 2" in str(healthy)
    assert "sample bad: the image cannot be read" in str(healthy)


class StubSet:
    """A sample set whose samples are not checked beforehand."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.fingerprint, self.description = samples, "stub", {"source": "stub"}
        self.groups = tuple(range(len(samples)))


def test_features_that_are_not_finite_in_one_process_end_all(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        features = layer_of(random_samples(2, 4), 4)
        if group.rank == 1:
            features.text[3, 2] = torch.nan
        return PooledLayer.of(features, MirConfig(), group)

    healthy, failing = together(2, work, tmp_path)
    assert "NaN or infinite" in str(failing)
    assert "process 1 of 2 failed: layer 1" in str(healthy)


def test_a_process_that_ends_without_a_word_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        if group.rank == 1:
            raise KeyError("a bug, outside of every agreement")
        return group.all_reduce(torch.ones(3))

    waiting, ended = together(2, work, tmp_path)
    assert isinstance(ended, KeyError)
    assert isinstance(waiting, MirError)
    assert "process 0 of 2 lost its connection" in str(waiting)


@pytest.mark.parametrize(("n", "size"), [(7, 3), (2, 3), (1, 4), (0, 2), (8, 2)])
def test_shards_in_rank_order_are_the_items_and_process_0_is_served(n: int, size: int) -> None:
    shards = [Group(rank, size).shard(range(n)) for rank in range(size)]
    assert [item for shard in shards for item in shard] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards[0] or n == 0


def test_one_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_group("cpu") as group:
        assert group is ALONE
    assert current_group() is ALONE
    assert own_device("auto") == "auto"


def launched(size: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(rank)`` returned in each of ``size`` forked processes with the environment of a launcher."""
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def process(rank: int, answers: Any) -> None:
        torch.set_num_threads(1)
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ranks}
        answers.put((rank, work(rank)))

    answers = context.Queue()
    processes = [context.Process(target=process, args=(rank, answers)) for rank in range(size)]
    for one in processes:
        one.start()
    return [answer for _, answer in sorted(answers.get(timeout=HANGS) for _ in processes)]


def test_a_launcher_s_environment_makes_a_group() -> None:
    def work(_: int) -> tuple[list[int], bool]:
        with launched_group("cpu") as group:
            ranks = group.all_gather_object(group.rank)
        return ranks, dist.is_initialized()

    assert launched(2, work) == [([0, 1], False)] * 2


@pytest.mark.parametrize(
    ("n_accelerators", "asked", "chosen"),
    [
        (2, "auto", ["cuda:0", "cuda:1"]),
        (2, "cuda", ["cuda:0", "cuda:1"]),
        (2, "cuda:1", None),  # that of process 1, but not of process 0
        (1, "auto", None),  # both share the only one
        (2, "cpu", None),
        (0, "auto", None),
    ],
)
def test_tensors_go_over_nccl_where_every_process_has_its_own_accelerator(
    n_accelerators: int, asked: str, chosen: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []  # in each forked process its own
    new_group = dist.new_group
    monkeypatch.setattr(dist, "new_group", lambda backend, **_: (made.append(backend), new_group(backend="gloo"))[1])
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: n_accelerators > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_accelerators)
    current: list[object] = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)

    def work(_: int) -> tuple[list[object], str, str]:
        with launched_group(own_device(asked)) as group:
            return made, str(group.device), str((current or ["none"])[-1])

    found = launched(2, work)
    if chosen:
        assert found == [(["nccl"], device, device) for device in chosen]
    else:
        assert [(backends, device) for backends, device, _ in found] == [([], "cpu")] * 2


def test_only_process_0_of_a_launched_run_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from mir_plugin.cli import app

    checkpoint = tmp_path / "toy"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    monkeypatch.setattr(Checkpoint, "spec", None)
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter())
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(3))))
    monkeypatch.setenv("WORLD_SIZE", "2")  # the group exists already, as under lmms-eval

    def work(group: Group) -> tuple[str, list[str]]:
        out = tmp_path / f"out-{group.rank}"
        run = CliRunner().invoke(app, ["run", str(checkpoint), "--out", str(out), "--json"], catch_exceptions=False)
        return run.stdout, [path.name for path in tmp_path.glob(f"out-{group.rank}/*")]

    (printed, written), others = together(2, work, tmp_path)
    assert MirResult.from_json(printed).engine["processes"] == 2
    assert written == ["mir.json"]
    assert others == ("", [])


def test_a_launched_sweep_shares_every_checkpoint_and_process_0_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gloo processes, as torchrun starts them; what one process alone finds is found by both."""
    from typer.testing import CliRunner

    from mir_plugin.cli import app

    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    monkeypatch.setattr(Checkpoint, "spec", None)
    monkeypatch.setattr(Checkpoint, "load", lambda self, *_: ToyAdapter(seed=int(self.name.name[-1])))
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(3))))

    def swept(group: Group, *more: str) -> tuple[int, str, Any]:
        out = tmp_path / f"out-of-{group.size}"
        arguments = ["sweep", f"{tmp_path}/checkpoint-*", "--out", str(out), "--no-report", "--json", *more]
        run = CliRunner().invoke(app, arguments)
        rows = json.loads(run.stdout)["checkpoints"] if run.stdout else None
        return run.exit_code, str(run.exception or ""), rows

    _, _, alone = swept(ALONE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (code, _, rows), others = together(2, swept, tmp_path)
    assert (code, others) == (0, (0, "", None))
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["mir"] for row in rows] == pytest.approx([row["mir"] for row in alone], rel=SAME_FEATURES)
    results = sorted((tmp_path / "out-of-2").glob("*/mir.json"))
    assert [MirResult.load(path).engine["processes"] for path in results] == [2, 2]

    (tmp_path / "rendezvous").unlink()
    refused = together(2, lambda group: swept(group, "--indicators"), tmp_path)
    assert ["--indicators" in message and "there are 2" in message for _, message, _ in refused] == [True, True]


@pytest.mark.parametrize(("rank", "bars"), [("0", True), ("1", False)])
def test_only_process_0_shows_progress(
    rank: str, bars: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2], "layers", "layer")) == [1, 2]
    assert ("layers: 100%" in capsys.readouterr().err) == bars
