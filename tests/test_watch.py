"""When a checkpoint that a training is writing counts as complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import mir
from safetensors.torch import save_file

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.model_adapters import Checkpoint
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.checkpoint_watcher import CheckpointWatcher, checkpoints_below, why_incomplete

from toy import ToyAdapter, toy_samples

TENSORS = {"weight": torch.arange(12.0)}


def projector_only(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    torch.save(TENSORS, folder / "mm_projector.bin")
    return folder / "mm_projector.bin"


def single_file(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name in names:
        save_file(TENSORS, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    return folder / names[1]


@pytest.mark.parametrize("write", [projector_only, single_file, sharded])
def test_a_checkpoint_is_complete_when_its_last_weights_file_is(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = tmp_path / "checkpoint-1"
    weights = write(folder)
    whole = weights.read_bytes()
    assert why_incomplete(folder) is None
    for n_bytes in (0, 4, 40, len(whole) - 1):
        weights.write_bytes(whole[:n_bytes])
        assert why_incomplete(folder) == f"{weights.name} is not written yet"
    weights.unlink()
    missing = f"{weights.name} is not written yet" if write is sharded else "no weights file is there yet"
    assert why_incomplete(folder) == missing


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b'{"weight_map": {"a"', b"\xff\xfe", b"[]"])
def test_half_a_json_file_is_not_complete(tmp_path: Path, name: str, content: bytes) -> None:
    sharded(tmp_path / "c")
    (tmp_path / "c" / name).write_bytes(content)
    assert why_incomplete(tmp_path / "c") == f"{name} is not written yet"


def test_an_old_pickle_and_a_peft_adapter_are_weights_too(tmp_path: Path) -> None:
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        torch.save(TENSORS, folder / name, _use_new_zipfile_serialization=False)
        assert why_incomplete(folder) is None


def test_only_settled_checkpoints_are_handed_out_and_each_state_once(tmp_path: Path) -> None:
    watch = CheckpointWatcher(tmp_path, settle_seconds=5)
    assert watch.ready(now=0) == []
    for step in (1000, 200):
        projector_only(tmp_path / f"checkpoint-{step}")
    assert watch.ready(now=10) == []  # first seen
    assert watch.ready(now=14) == []  # unchanged, but not for long enough
    assert watch.ready(now=15) == [tmp_path / "checkpoint-200", tmp_path / "checkpoint-1000"]
    assert watch.ready(now=60) == []
    torch.save({"weight": torch.arange(13.0)}, tmp_path / "checkpoint-200" / "mm_projector.bin")
    assert watch.ready(now=70) == []
    assert watch.ready(now=80) == [tmp_path / "checkpoint-200"]


def test_a_file_that_still_grows_puts_the_checkpoint_off(tmp_path: Path) -> None:
    weights = projector_only(tmp_path / "checkpoint-1")
    watch = CheckpointWatcher(tmp_path, settle_seconds=5)
    for now in range(0, 40, 4):
        (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(" " * now)
        assert watch.ready(now=now) == []
    assert watch.ready(now=50) == [weights.parent]


def test_an_incomplete_checkpoint_is_never_handed_out_however_long_it_rests(tmp_path: Path) -> None:
    weights = projector_only(tmp_path / "checkpoint-1")
    weights.write_bytes(weights.read_bytes()[:-20])
    watch = CheckpointWatcher(tmp_path, settle_seconds=5)
    assert [watch.ready(now=now) for now in (0, 100, 200)] == [[], [], []]


def test_folders_named_after_steps_count_at_any_depth_and_nothing_inside_them(tmp_path: Path) -> None:
    for name in ("a/checkpoint-2", "b/c/step-10", "b/base_llm", "b/tmp-checkpoint-5", "a/checkpoint-2/checkpoint-3"):
        (tmp_path / name).mkdir(parents=True)
    assert {str(path.relative_to(tmp_path)) for path in checkpoints_below(tmp_path)} == {
        "a/checkpoint-2",
        "b/c/step-10",
    }


def test_rounds_end_when_nothing_new_came_for_long_enough(tmp_path: Path) -> None:
    projector_only(tmp_path / "checkpoint-1")
    rounds = list(CheckpointWatcher(tmp_path, settle_seconds=0).rounds(poll_seconds=0.01, idle_seconds=0.1))
    assert [found for found in rounds if found] == [[tmp_path / "checkpoint-1"]]
    assert len(rounds) > 3


def test_what_is_still_measured_elsewhere_is_not_idle(tmp_path: Path) -> None:
    left = [5]

    def busy() -> bool:
        left[0] -= 1
        return left[0] > 0

    rounds = CheckpointWatcher(tmp_path).rounds(poll_seconds=0, idle_seconds=0, busy=busy)
    assert len(list(rounds)) == 5


def test_watching_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MirError, match="no such folder"):
        CheckpointWatcher(tmp_path / "runs")


def test_what_a_settled_checkpoint_lacks_is_told_once_and_at_the_end_with_a_command(tmp_path: Path) -> None:
    states = tmp_path / "checkpoint-5" / "global_step5"
    states.mkdir(parents=True)
    (states / "mp_rank_00_model_states.pt").write_bytes(b"x")
    (tmp_path / "checkpoint-5" / "zero_to_fp32.py").write_text("")
    projector_only(tmp_path / "checkpoint-6")
    watch = CheckpointWatcher(tmp_path, settle_seconds=5)
    assert watch.ready(now=0) == []
    assert watch.news() == {}
    assert watch.ready(now=5) == [tmp_path / "checkpoint-6"]
    assert watch.news() == {tmp_path / "checkpoint-5": "config.json is not written yet"}
    assert watch.ready(now=10) == []
    assert watch.news() == {}
    [(checkpoint, reason)] = watch.unfinished().items()
    assert checkpoint == tmp_path / "checkpoint-5"
    assert "config.json is not written yet" in reason
    assert "zero_to_fp32.py" in reason


def test_an_adapter_without_config_and_a_folder_of_shards_are_complete(tmp_path: Path) -> None:
    adapter = tmp_path / "checkpoint-1"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file(TENSORS, adapter / "adapter_model.safetensors")
    assert why_incomplete(adapter) is None
    shards = tmp_path / "checkpoint-2" / "pytorch_model.bin"
    shards.mkdir(parents=True)
    (shards.parent / "config.json").write_text("{}")
    torch.save(TENSORS, shards / "pytorch_model-00001-of-00001.bin")
    assert why_incomplete(shards.parent) is None


def test_a_base_given_on_the_command_line_stands_in_for_a_config_that_is_not_there(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert why_incomplete(tmp_path) == "config.json is not written yet"
    assert why_incomplete(tmp_path, has_base=True) is None
    (tmp_path / "config.json").write_text("{")  # being written
    assert why_incomplete(tmp_path, has_base=True) == "config.json is not written yet"


@pytest.mark.parametrize(
    ("shard", "last"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"),
        ("global_step1/mp_rank_00_model_states.pt", "latest"),
    ],
)
def test_shards_of_a_training_are_whole_with_the_file_that_is_written_last(
    shard: str, last: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / shard).parent.mkdir()
    (tmp_path / shard).write_bytes(b"x")
    assert why_incomplete(tmp_path, unpickle=True) == "no weights file is there yet"
    (tmp_path / last).write_bytes(b"x")
    assert why_incomplete(tmp_path, unpickle=True) is None
    assert why_incomplete(tmp_path) == "no weights file is there yet"


def test_folders_of_lightning_are_named_at_the_end_but_not_its_files_in_a_checkpoint(
    tmp_path: Path,
) -> None:
    for folder in (tmp_path / "lightning", projector_only(tmp_path / "checkpoint-6").parent):
        folder.mkdir(exist_ok=True)
        (folder / "epoch=0-step=60.ckpt").write_bytes(b"x")
    watch = CheckpointWatcher(tmp_path, settle_seconds=5)
    assert watch.ready(now=0) == []
    assert watch.ready(now=5) == [tmp_path / "checkpoint-6"]
    [(folder, reason)] = watch.unfinished().items()
    assert folder == tmp_path / "lightning"
    assert "Lightning checkpoint" in reason


def test_a_watch_lists_what_never_became_a_checkpoint_with_the_reason_and_it_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    projector_only(runs / "checkpoint-1")
    projector_only(runs / "checkpoint-2").unlink()
    (runs / "lightning").mkdir()
    (runs / "lightning" / "epoch=0-step=60.ckpt").write_bytes(b"x")
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter())
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(3))))
    options = ["--watch-settle", 0.1, "--watch-idle", 0.5, "--no-report", "--out", tmp_path / "out"]
    assert mir(monkeypatch, "sweep", "--watch", runs, *options) == 0
    printed = capsys.readouterr()
    for reason in ("not measured: no weights file is there yet", "Lightning checkpoint"):
        assert reason in " ".join(printed.out.split())
    assert "checkpoint-2: waiting: no weights file is there yet" in printed.err
    states = {
        row["step"]: row["state"] for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["checkpoints"]
    }
    assert (states[1], states[2]) == ("measured", "failed")
