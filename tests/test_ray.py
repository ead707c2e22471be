"""Sweeps on real local Ray clusters: the numbers of a local sweep, and what happens when part of the cluster fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import mir

from golden_data import require_golden
from tolerances import HANGS

# Clusters start slowly, and fail to on a busy machine: `make test-full` runs them.
pytestmark = [pytest.mark.slow, pytest.mark.full]
ray = pytest.importorskip("ray")
VERDICTS = (0, 3, 4)  # exit codes where every checkpoint was measured
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
MARK = "MIR_TESTS_MARK"
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]))


def started(start: Callable[[], Any], attempts: int = 5) -> Any:
    """What Ray starts; it gives a process half a minute, which is short on a busy machine."""
    for _ in range(attempts - 1):
        try:
            return start()
        except Exception as error:  # Ray's own, without a class
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture
def cluster(quiet: None) -> Iterator[Any]:
    """A head that measures nothing; tests add nodes with one core each."""
    from ray.cluster_utils import Cluster

    one = started(lambda: Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0}))
    add_node = one.add_node
    one.add_node = lambda **options: started(lambda: add_node(**options))
    yield one
    ray.shutdown()
    one.shutdown()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Six projector-only checkpoints, two of them alike, and a broken one."""
    case = require_golden("llava/llava_projector")
    for step in (10, 20, 30, 40, 50):
        folder = tmp_path / "runs" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("config.json", "mm_projector.bin"):
            shutil.copy(case / "model" / ("checkpoint-20" if step % 20 else "") / name, folder)
    weights = tmp_path / "runs" / "checkpoint-50" / "mm_projector.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    return tmp_path / "runs"


def options(n_samples: int = 3) -> list[object]:
    case = require_golden("llava/llava_projector")
    return [
        "--base-llm", case / "base_llm", "--vision-tower", case / "vision_tower",
        "--embedded", "--n-samples", n_samples, "--device", "cpu", "--no-report",
    ]  # fmt: skip


def rows(out: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in json.loads((out / "sweep.json").read_text())["checkpoints"]}


def wait_for(happened: Callable[[], object]) -> None:
    since = time.monotonic()
    while not happened():
        assert time.monotonic() - since < HANGS, "it did not happen"
        time.sleep(0.02)


def layers_of(result: Path) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(result.read_text())["layers"]
    return layers


def times_of(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/mir.json")}


def test_a_cluster_of_two_nodes_gives_the_numbers_of_a_local_sweep_and_resumes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    runs: Path,
    cluster: Any,
    one_thread: None,
) -> None:
    for _ in range(2):
        cluster.add_node(**NODE)
    patterns = [f"{runs}/checkpoint-*", *options()]
    assert mir(monkeypatch, "sweep", *patterns, "--out", tmp_path / "local") == 5
    here = capsys.readouterr().out
    arguments = ["sweep", *patterns, "--out", tmp_path / "out", f"--ray={cluster.address}"]
    assert mir(monkeypatch, *arguments) == 5
    there = capsys.readouterr().out
    assert [line for line in here.splitlines() if "fine-tune" in line.lower() or "choice" in line] == [
        line for line in there.splitlines() if "fine-tune" in line.lower() or "choice" in line
    ]
    assert "failed: runs_checkpoint-50" in there
    for step, row in rows(tmp_path / "local").items():
        other = rows(tmp_path / "out")[step]
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
        if row["result"]:
            assert layers_of(tmp_path / "local" / row["result"]) == layers_of(tmp_path / "out" / row["result"])
    times = times_of(tmp_path / "out")
    ray.shutdown()
    # A local sweep takes what Ray measured for its own, and the other way round.
    for again in (arguments, arguments[:-1]):
        assert mir(monkeypatch, *again) == 5
        assert {row["state"] for row in rows(tmp_path / "out").values()} == {"kept", "failed"}
    assert times == times_of(tmp_path / "out")


def test_samples_taken_step_by_step_are_those_of_a_local_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path, cluster: Any, one_thread: None
) -> None:
    cluster.add_node(**NODE)
    shutil.rmtree(runs / "checkpoint-50")
    arguments = ["sweep", f"{runs}/checkpoint-*", *options(40), "--precision", 0.0001, "--tolerance", 0]
    code = mir(monkeypatch, *arguments, "--out", tmp_path / "local")
    assert mir(monkeypatch, *arguments, "--out", tmp_path / "out", "--ray", cluster.address) == code
    here, there = rows(tmp_path / "local"), rows(tmp_path / "out")
    assert {row["n_samples"] for row in here.values()} >= {40}  # two are alike: no number of samples tells them apart
    for step, row in here.items():
        assert {**row, "seconds": 0} == {**there[step], "seconds": 0}
    for path in (tmp_path / "local").glob("*/mir.json"):
        local, other = (
            json.loads(file.read_text()) for file in (path, tmp_path / "out" / path.parent.name / path.name)
        )
        assert [look["mir"] for look in local["looks"]] == [look["mir"] for look in other["looks"]]


def test_checkpoints_on_a_node_that_is_killed_are_measured_on_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path, cluster: Any
) -> None:
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    shutil.rmtree(runs / "checkpoint-50")
    out = tmp_path / "out"

    def kill() -> None:
        wait_for(lambda: len(list(out.glob("*/mir.partial.jsonl"))) == 2)
        cluster.remove_node(nodes[1], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    code = mir(
        monkeypatch, "sweep", f"{runs}/checkpoint-*", *options(100), "--out", out, "--ray", cluster.address,
        "--gpus-per-checkpoint", 0,
    )  # fmt: skip
    killer.join()
    assert code in VERDICTS
    assert {row["state"] for row in rows(out).values()} == {"measured"}
    assert rows(out)[10]["mir"] == rows(out)[30]["mir"]
    assert not list(out.glob("*/mir.partial.jsonl"))


def test_a_worker_with_a_full_disk_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path, cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs rights")
    try:
        (disk / "full").write_bytes(b"\0" * 4096)
        cluster.add_node(**NODE, env_vars={"TMPDIR": str(disk)})
        cluster.add_node(**NODE)
        out = tmp_path / "out"
        code = mir(monkeypatch, "sweep", f"{runs}/checkpoint-*", *options(), "--out", out, "--ray", cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
        subprocess.run(["umount", "-l", disk], check=True)
    assert code == 5
    assert {step: row["state"] for step, row in rows(out).items()} == {
        10: "measured", 20: "measured", 30: "measured", 40: "measured", 50: "failed",
    }  # fmt: skip
    assert "is measured on another worker" in caplog.text and "No space left" in caplog.text


def test_ctrl_c_leaves_finished_checkpoints_and_layers_and_no_worker(tmp_path: Path, runs: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mir_plugin.cli", "sweep", f"{runs}/checkpoint-*", *options(100), "--out", out]
    command += ["--ray", "local", "--max-parallel", "1"]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            list(map(str, command)), stderr=log, stdout=log, env={**os.environ, MARK: str(tmp_path)}
        )

    def until(happened: Callable[[], object]) -> None:
        wait_for(lambda: happened() or running.poll() is not None)
        assert running.poll() is None, (tmp_path / "log").read_text()

    try:
        until(lambda: any(row["state"] == "measured" for row in saved_rows(out)))
        until(lambda: list(out.glob("*/mir.partial.jsonl")))
        assert processes_marked(str(tmp_path), "ray::CheckpointWorker")
        running.send_signal(signal.SIGINT)
        assert running.wait(HANGS) == 130
    finally:
        running.kill()
    states = [row["state"] for row in saved_rows(out)]
    assert "measured" in states and "waiting" in states
    [partial] = out.glob("*/mir.partial.jsonl")
    assert len(partial.read_text().splitlines()) > 1  # finished layers: the next sweep goes on from there
    wait_for(lambda: not processes_marked(str(tmp_path)))


def saved_rows(out: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads((out / "sweep.json").read_text())["checkpoints"])
    except (OSError, ValueError):
        return []


def processes_marked(value: str, title: str = "") -> list[str]:
    """Processes that were started, however indirectly, with this value of MARK, and have this in their title."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title in command and f"{MARK}={value}\0" in environment:
            found.append(command)
    return found


def test_a_watch_measures_on_a_cluster_what_lands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path, cluster: Any
) -> None:
    cluster.add_node(**NODE)
    later, out = tmp_path / "checkpoint-60", tmp_path / "out"
    shutil.rmtree(runs / "checkpoint-50")
    for step in (30, 40):
        shutil.rmtree(runs / f"checkpoint-{step}")
    shutil.copytree(runs / "checkpoint-20", later)

    def land() -> None:
        wait_for(lambda: (out / "runs_checkpoint-10" / "mir.json").exists())
        shutil.move(later, runs / "checkpoint-60")

    training = threading.Thread(target=land)
    training.start()
    arguments = ["sweep", "--watch", runs, *options(), "--out", out, "--ray", cluster.address]
    assert mir(monkeypatch, *arguments, "--watch-settle", 0.2, "--watch-idle", 5) in VERDICTS
    training.join()
    assert {step: row["state"] for step, row in rows(out).items()} == dict.fromkeys((10, 20, 60), "measured")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1"),
        (["--gpus-per-checkpoint", "1"], "need --ray"),
    ],
)
def test_a_mistake_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    assert mir(monkeypatch, "sweep", runs / "checkpoint-10", *options(), "--out", tmp_path / "o", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_cluster_without_gpus_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path, cluster: Any
) -> None:
    cluster.add_node(**NODE)
    arguments = ["sweep", runs / "checkpoint-10", *options(), "--out", tmp_path / "o", "--ray", cluster.address]
    assert mir(monkeypatch, *arguments, "--gpus-per-checkpoint", 1) == 1
    assert "--gpus-per-checkpoint" in capsys.readouterr().err
