"""What `mir sweep --ray` refuses, and what it says where Ray does not start; no cluster is."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import mir

pytestmark = pytest.mark.slow


def test_ray_and_a_share_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    arguments = ["sweep", f"{tmp_path}/checkpoint-1", "--embedded", "--out", tmp_path / "out", "--ray", "local"]
    assert mir(monkeypatch, *arguments, "--shard", "1/2") == 1
    assert "--shard" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert mir(monkeypatch, *arguments) == 1
    assert "--shard 1/1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [Exception("The current node timed out"), RuntimeError("a port is taken")])
def test_ray_that_does_not_start_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: Exception
) -> None:
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    (tmp_path / "checkpoint-1").mkdir()
    arguments = ["sweep", f"{tmp_path}/checkpoint-1", "--embedded", "--out", tmp_path / "out", "--ray", "local"]
    assert mir(monkeypatch, *arguments) == 1
    told = capsys.readouterr().err
    assert f"--ray local: {error}" in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()
