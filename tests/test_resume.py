from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mir_plugin.measurement.measure
from mir_plugin.errors import MirError
from mir_plugin.files.atomic import replacing, write_atomically
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.measurement.resume import Journal, finished_result, loading_fingerprint, request_fingerprint
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet

from toy import ToyAdapter, toy_samples

SAMPLES = SampleSet(tuple(toy_samples(5)))


class Killed(BaseException):
    """Stands for a kill: nothing in the product catches it."""


def interrupted_after(n_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next measurement end abruptly when it asks for the features of layer ``n_layers`` + 1."""
    features = mir_plugin.measurement.measure.layer_features

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for one in features(*args, **kwargs):
            if one.layer > n_layers:
                raise Killed
            yield one

    monkeypatch.setattr(mir_plugin.measurement.measure, "layer_features", interrupted)


def counting_statistics(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers whose statistics are computed from here on."""
    layers: list[int] = []
    pooled = PooledLayer.of

    def counted(features: Any, *args: Any) -> Any:
        layers.append(features.layer)
        return pooled(features, *args)

    monkeypatch.setattr(PooledLayer, "of", counted)
    return layers


def comparable(result: MirResult) -> dict[str, Any]:
    return {"layers": result.layers, "mir": result.mir, "uncertainty": result.uncertainty}


def test_a_killed_run_continues_after_its_last_finished_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "mir.partial.jsonl")
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(Killed):
            measure(ToyAdapter(), SAMPLES, checkpoint="toy", journal=journal)
    layers = counting_statistics(monkeypatch)
    resumed = measure(ToyAdapter(), SAMPLES, checkpoint="toy", journal=Journal(journal.path))
    assert layers == [3]
    assert resumed.engine["resumed_layers"] == 2
    assert comparable(resumed) == comparable(measure(ToyAdapter(), SAMPLES, checkpoint="toy"))


def test_a_line_cut_short_by_the_kill_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mir.partial.jsonl"
    whole = measure(ToyAdapter(), SAMPLES, checkpoint="toy", journal=Journal(path))
    path.write_bytes(path.read_bytes()[:-40])
    layers = counting_statistics(monkeypatch)
    resumed = measure(ToyAdapter(), SAMPLES, checkpoint="toy", journal=Journal(path))
    assert layers == [3]
    assert comparable(resumed) == comparable(whole)
    assert len(path.read_text().splitlines()) == 4  # the key and three layers: the torn line is gone


@pytest.mark.parametrize(
    "other",
    [
        {"adapter": ToyAdapter(seed=1)},
        {"sample_set": SampleSet(tuple(toy_samples(4)))},
        {"config": MirConfig(outliers="none")},
        {"with_uncertainty": False},
        {"request": "another dtype"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_layers_of_another_measurement_are_not_taken(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mir.partial.jsonl"
    asked = {"adapter": ToyAdapter(), "sample_set": SAMPLES, "config": MirConfig(), "checkpoint": "toy"}
    measure(**asked, journal=Journal(path))
    assert measure(**asked, journal=Journal(path)).engine["resumed_layers"] == 3
    assert measure(**{**asked, **other}, journal=Journal(path)).engine["resumed_layers"] == 0


def checkpoint_at(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def test_a_request_is_the_same_until_a_file_or_an_option_changes(tmp_path: Path) -> None:
    checkpoint, tower = checkpoint_at(tmp_path / "a"), checkpoint_at(tmp_path / "tower")

    def request(protocol: MirConfig | None = None, **changes: Any) -> str:
        loading = loading_fingerprint(LoadOptions(**{"device": "cpu", "vision_tower": tower, **changes}))
        return request_fingerprint(checkpoint, loading, protocol or MirConfig(), "samples")

    first = request()
    assert request() == first
    assert request(device_memory=5) == first  # it changes the memory, not the result
    assert request(dtype="float16") != first
    assert request(MirConfig(normalize=False)) != first
    (tower / "model.safetensors").write_bytes(bytes(99) + b"1")
    with_new_tower = request()
    assert with_new_tower != first
    (checkpoint / "model.safetensors").write_bytes(bytes(99) + b"1")
    assert request() != with_new_tower


def test_only_a_result_of_the_same_request_counts_as_finished(tmp_path: Path) -> None:
    path, toy = tmp_path / "mir.json", Path("toy")
    assert finished_result(path, "r", toy, with_uncertainty=True) is None
    result = measure(ToyAdapter(), SAMPLES, checkpoint="toy", with_uncertainty=False, request="r")
    result.save(path)
    assert finished_result(path, "r", toy, with_uncertainty=False) is not None
    assert finished_result(path, "r", toy, with_uncertainty=True) is None
    assert finished_result(path, "another", toy, with_uncertainty=False) is None
    assert finished_result(path, "another", toy.absolute(), with_uncertainty=False) is None
    with pytest.raises(MirError, match=r"mir\.json .*toy, .*b/toy.*--out"):
        finished_result(path, "another", Path("b/toy"), with_uncertainty=False)
    path.write_text("{")
    assert finished_result(path, "r", toy, with_uncertainty=False) is None


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    stray, other = tmp_path / ".mir.json.x1.part", tmp_path / ".sweep.json.x1.part"
    for path in (stray, other):
        path.write_text("half")
    with replacing(tmp_path / "mir.json") as first:
        assert not stray.exists()
        write_atomically(tmp_path / "mir.json", "second")
        assert first.exists()
        first.write_text("first")
    assert (tmp_path / "mir.json").read_text() == "first"
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "mir.json"]


def measurement_at(folder: Path, path: Path, **options: Any) -> Measurement:
    protocol = options.pop("protocol", MirConfig())
    return Measurement(Checkpoint(folder, LoadOptions()), SAMPLES, protocol, path.parent, **options)


def test_a_second_run_prints_the_first_s_result_and_force_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[Path] = []

    def load(checkpoint: Checkpoint, *_: Any) -> ToyAdapter:
        loads.append(checkpoint.name)
        return ToyAdapter()

    monkeypatch.setattr(Checkpoint, "load", load)
    checkpoint, path = checkpoint_at(tmp_path / "toy"), tmp_path / "out" / "mir.json"
    path.parent.mkdir()
    (path.parent / "mir.partial.jsonl").write_text("left by a killed run of something else")

    first = measurement_at(checkpoint, path).run()
    assert MirResult.load(path).mir == first.mir
    assert [one.name for one in path.parent.iterdir()] == ["mir.json"]  # the journal goes once the result is saved
    assert capsys.readouterr().err == ""
    again = measurement_at(checkpoint, path).run()
    assert again.created == first.created
    assert again.layers == first.layers
    assert len(loads) == 1
    assert "--force" in capsys.readouterr().err
    measurement_at(checkpoint, path, force=True).run()
    assert len(loads) == 2


def test_a_result_is_replaced_by_one_of_its_own_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter())
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
    one, other = (checkpoint_at(tmp_path / run / "final") for run in ("a", "b"))
    path = tmp_path / "out" / "mir.json"
    measurement_at(one, path).run()
    before = path.read_bytes()
    with pytest.raises(MirError) as refused:
        measurement_at(other, path).run()
    assert all(text in str(refused.value) for text in (str(one), str(other), "--out", "--force"))
    assert path.read_bytes() == before
    capsys.readouterr()
    assert measurement_at(one, path, protocol=MirConfig(outliers="none")).run().config.outliers == "none"
    assert f"{path} was measured with other options" in capsys.readouterr().err
    assert measurement_at(other, path, force=True).run().checkpoint == str(other)


def test_force_starts_from_the_first_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter())
    measurement = measurement_at(checkpoint_at(tmp_path / "toy"), tmp_path / "out" / "mir.json")
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(Killed):
            measurement.run()
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(Killed):
            dataclasses.replace(measurement, force=True).run()
    layers = counting_statistics(monkeypatch)
    assert measurement.run().engine["resumed_layers"] == 2
    assert layers == [3]


def test_of_the_device_its_kind_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_at(tmp_path / "toy")

    def fingerprints(*devices: str) -> set[str]:
        asked = measurement_at(checkpoint, tmp_path / "mir.json")
        loads = [LoadOptions(device=device) for device in devices]
        return {dataclasses.replace(asked, checkpoint=Checkpoint(checkpoint, load)).fingerprint for load in loads}

    on_cpu = fingerprints("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: None)  # by which a device is tried out
    assert len(fingerprints("auto", "cuda", "cuda:0", "cuda:3")) == 1  # with torchrun, without, with another number
    assert fingerprints("cpu") == on_cpu != fingerprints("auto")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fingerprints("auto") == on_cpu
