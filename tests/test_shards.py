"""A sweep divided among the tasks of a job array: disjoint shares, one verdict, by whoever finishes last."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

import pytest
from command_line import mir

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.model_adapters import Checkpoint
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.shards import Shard, parsed_shard, shard_of_array_task

from toy import ToyAdapter, toy_samples


def steps(*numbers: int) -> tuple[list[Path], list[str]]:
    return [Path(f"/runs/a/checkpoint-{n}") for n in numbers], [f"a_checkpoint-{n}" for n in numbers]


def test_shares_are_disjoint_hold_everything_and_keep_neighbours_together(tmp_path: Path) -> None:
    shares = [list(Shard(i, 3).planned(tmp_path, *steps(*range(7)))) for i in (1, 2, 3)]
    assert [[one.name for one in share] for share in shares] == [
        ["checkpoint-0", "checkpoint-1", "checkpoint-2"], ["checkpoint-3", "checkpoint-4"],
        ["checkpoint-5", "checkpoint-6"],
    ]  # fmt: skip


def test_a_share_keeps_what_it_had_when_checkpoints_are_added_or_deleted(tmp_path: Path) -> None:
    before = {i: set(Shard(i, 3).planned(tmp_path, *steps(*range(6)))) for i in (1, 2, 3)}
    after = {i: set(Shard(i, 3).planned(tmp_path, *steps(*range(-1, 9)))) for i in (1, 2, 3)}
    assert all(before[i] <= after[i] for i in before)
    assert sorted(map(len, after.values())) == [3, 3, 4]
    fewer = {i: set(Shard(i, 3).planned(tmp_path, *steps(0, 5))) for i in (1, 2, 3)}
    assert fewer == {1: {Path("/runs/a/checkpoint-0")}, 2: set(), 3: {Path("/runs/a/checkpoint-5")}}


def test_tasks_that_start_at_once_agree_though_they_see_different_checkpoints(tmp_path: Path) -> None:
    found: dict[int, dict[Path, str]] = {}

    def task(i: int) -> None:
        found[i] = Shard(i, 8).planned(tmp_path, *steps(*range(20 + i)))

    threads = [threading.Thread(target=task, args=(i,)) for i in range(1, 9)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    shares = [set(Shard(i, 8).planned(tmp_path, *steps(*range(28)))) for i in range(1, 9)]
    assert sum(map(len, shares)) == 28 and len(set().union(*shares)) == 28
    assert all(set(found[i]) <= shares[i - 1] for i in found)


def test_two_checkpoints_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    Shard(1, 2).planned(tmp_path, [Path("/x/final")], ["final"])
    names = {**Shard(1, 2).planned(tmp_path, [Path("/x/final"), Path("/y/final")], ["final", "final"]),
             **Shard(2, 2).planned(tmp_path, [Path("/x/final"), Path("/y/final")], ["final", "final"])}  # fmt: skip
    assert names == {Path("/x/final"): "final", Path("/y/final"): "final_2"}


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/2/3", "-1/4"])
def test_a_wrong_shard_is_refused_by_name(text: str) -> None:
    with pytest.raises(MirError, match=f"--shard {text}: expected I/N"):
        parsed_shard(text)
    assert parsed_shard("3/8") == Shard(3, 8)


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({}, None),
        ({"ID": "3", "COUNT": "1", "MIN": "3"}, None),  # one task repeated alone does what is left
        ({"ID": "0", "COUNT": "4", "MIN": "0"}, Shard(1, 4)),
        ({"ID": "4", "COUNT": "4", "MIN": "1", "STEP": "1"}, Shard(4, 4)),
        ({"ID": "15", "COUNT": "4", "MIN": "0", "STEP": "5"}, Shard(4, 4)),
    ],
)
def test_the_share_of_an_array_s_task_follows_from_slurm_s_variables(
    variables: dict[str, str], shard: Shard | None
) -> None:
    assert shard_of_array_task({f"SLURM_ARRAY_TASK_{name}": text for name, text in variables.items()}) == shard


def test_uneven_numbers_of_an_array_are_refused() -> None:
    with pytest.raises(MirError, match="--shard I/N"):
        shard_of_array_task({f"SLURM_ARRAY_TASK_{k}": v for k, v in {"ID": "9", "COUNT": "3", "MIN": "1"}.items()})


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Five toy checkpoints in ``runs``, in the working directory; the fourth cannot be loaded."""
    monkeypatch.chdir(tmp_path)
    for step in range(1, 6):
        (tmp_path / "runs" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "runs" / f"checkpoint-{step}" / "config.json").write_text("{}")

    def load(checkpoint: Checkpoint, *_: object) -> ToyAdapter:
        step = int(checkpoint.name.name[-1])
        if step == 4:
            raise MirError("checkpoint 4 is broken")
        return ToyAdapter(seed=step)

    monkeypatch.setattr(Checkpoint, "load", load)
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(3))))
    return tmp_path / "runs"


def test_the_last_of_all_tasks_writes_the_tables_and_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toys: Path, tmp_path: Path
) -> None:
    command = ["sweep", toys, "--no-report"]
    assert mir(monkeypatch, *command, "--out", "whole", "--json") == 5
    whole = json.loads(capsys.readouterr().out)
    codes = []
    for task in ("2", "0", "1"):
        assert not (tmp_path / "out" / "sweep.json").exists()
        for name, text in {"ID": task, "COUNT": "3", "MIN": "0"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", text)
        codes.append(mir(monkeypatch, *command, "--out", "out"))
    assert codes == [0, 0, 5]  # the last task has the broken checkpoint, and tells the verdict
    printed = capsys.readouterr()
    assert "task 3 of 3 of a Slurm array" in printed.err
    assert printed.out.count("the last task to finish gives the verdict") == 2
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(row["step"], row["mir"], row["error"]) for row in document["checkpoints"]] == [
        (row["step"], row["mir"], row["error"]) for row in whole["checkpoints"]
    ]
    assert document["selection"] == whole["selection"]
    assert whole["selection"]["sentence"] in printed.out


def test_every_finished_checkpoint_is_a_line_of_sweep_jsonl_once(
    monkeypatch: pytest.MonkeyPatch, toys: Path, tmp_path: Path
) -> None:
    for checkpoints in ([toys / "checkpoint-1"], [toys / "checkpoint-1", toys / "checkpoint-2", toys / "checkpoint-4"]):
        mir(monkeypatch, "sweep", *checkpoints, "--no-report", "--out", "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "sweep.jsonl").read_text().splitlines()]
    assert [(row["step"], row["state"]) for row in rows] == [(1, "measured"), (2, "measured"), (4, "failed")]
    table = {row["name"]: row for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["checkpoints"]}
    assert all(row["mir"] == table[row["name"]]["mir"] for row in rows)
    assert all(row["time"].endswith("+00:00") for row in rows)


class Tracker:
    """Stands for one of accelerate's; notes what it is given."""

    requires_logging_directory = False
    notes: list[tuple[str, object, object]]

    def __init__(self, project: str) -> None:
        self.notes.append(("project", project, None))

    def store_init_configuration(self, values: object) -> None:
        pass

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.notes.append(("log", values["mir/mir"], step))

    def finish(self) -> None:
        self.notes.append(("finish", None, None))


def test_a_tracker_gets_one_run_with_mir_against_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toys: Path
) -> None:
    monkeypatch.setattr(Tracker, "notes", [], raising=False)
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"trackio": Tracker})
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["trackio"])
    mir(monkeypatch, "sweep", toys, "--no-report", "--json", "--log", "trackio")
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    expected = [("log", row["mir"], row["step"]) for row in rows if row["mir"]]
    assert Tracker.notes == [("project", "mir-sweep", None), *expected, ("finish", None, None)]
    assert mir(monkeypatch, "sweep", toys, "--log", "mlflow") == 1
    assert "--log mlflow: mlflow is not installed. Run: pip install mlflow" in capsys.readouterr().err
    assert mir(monkeypatch, "sweep", toys, "--log", "excel") == 1
    assert "--log excel: expected one of wandb, tensorboard, mlflow, trackio" in capsys.readouterr().err


def test_a_tensorboard_run_is_written(monkeypatch: pytest.MonkeyPatch, toys: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    mir(monkeypatch, "sweep", toys, "--no-report", "--out", "out", "--log", "tensorboard")
    (events, *_) = (tmp_path / "out" / "mir-sweep").rglob("*tfevents*")
    assert b"mir/mir" in events.read_bytes()


def test_a_trackio_run_is_written(monkeypatch: pytest.MonkeyPatch, toys: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    mir(monkeypatch, "sweep", toys, "--no-report", "--out", "out", "--log", "trackio")
    (database, *_) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        assert b"mir/mir" in connection.execute("SELECT metrics FROM metrics").fetchone()[0]


def test_a_dry_run_says_what_how_long_and_how_much_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toys: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(Checkpoint, "spec", type("Spec", (), {"name": "toy"}))
    command = ["sweep", toys, "--no-report", "--out", "out"]
    assert mir(monkeypatch, *command, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "5 of 5 checkpoints to measure" in told and "timing 2 of its 3 layers on cpu" in told
    assert "decoder weights" in told and "time    about" in told
    assert not (tmp_path / "out").exists()
    assert mir(monkeypatch, *command, "--dry-run", "--precision", 0.01) == 0
    assert "time    up to about" in capsys.readouterr().out
    mir(monkeypatch, "sweep", toys / "checkpoint-1", "--no-report", "--out", "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert mir(monkeypatch, *command, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in plan["checkpoints"]] == ["kept: measured before", *["to measure (toy)"] * 4]
    result = json.loads((tmp_path / "out" / "runs_checkpoint-1" / "mir.json").read_text())
    assert plan["cost"]["seconds"] == result["timing"]["total"]
    assert plan["seconds"] == pytest.approx(4 * plan["cost"]["seconds"])
    assert plan["cost"]["basis"] == "1 earlier result on cpu"
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
