"""Sweeps: order, sharing of failures, files at any moment, and the commands ``mir sweep`` and ``mir select``."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import mir
from rich.console import Console

from mir_plugin.commands.sweep_table import SweepDisplay, sweep_table
from mir_plugin.commands.terminal import print_ranking
from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import folder_fingerprint
from mir_plugin.measurement.checkpoint_names import in_training_order, result_name, run_of, step_of
from mir_plugin.measurement.measure import measure
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.candidates import found_checkpoints
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import select
from mir_plugin.selection.sweep import (
    Measured,
    Sweep,
    SweepEntry,
)

from golden_data import require_golden
from tolerances import HANGS, SAME_FEATURES
from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow

CODES = {"clear": 0, "undecided": 3, "still falling": 4}
SAMPLES = SampleSet(tuple(toy_samples(3)))


class Killed(BaseException):
    """Stands for a kill: nothing in the product catches it."""


@functools.cache
def toy_result(checkpoint: Path, seed: int = 0) -> MirResult:
    return measure(ToyAdapter(n_layers=1, width=8, seed=seed), SAMPLES, checkpoint=str(checkpoint))


def measured_by_step(checkpoint: Path, path: Path) -> Measured:
    """A small real measurement for each checkpoint; those of certain steps fail."""
    step = step_of(checkpoint)
    if step == 20:
        raise MirError("20 is broken")
    if step == 30:
        raise torch.OutOfMemoryError("device memory is full")
    if step == 99:
        raise Killed
    result = toy_result(checkpoint, seed=step or 0)
    result.save(path)
    return Measured(result, kept=False)


def saved(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return document


def test_checkpoints_are_ordered_by_run_and_step_and_the_last_one_by_its_trainer_state(tmp_path: Path) -> None:
    for name in ("run10/checkpoint-5", "run9/checkpoint-1000", "run9/checkpoint-200", "run9/odd"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run9" / "trainer_state.json").write_text('{"global_step": 1200}')
    paths = [tmp_path / n for n in ("run10/checkpoint-5", "run9", "run9/checkpoint-1000", "run9/checkpoint-200")]
    ordered = in_training_order([*paths, paths[0]])
    assert ordered == [paths[3], paths[2], paths[1], paths[0]]
    assert [step_of(path) for path in ordered] == [200, 1000, 1200, 5]
    assert run_of(paths[1]) == run_of(paths[2])


def test_a_failed_checkpoint_is_noted_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.add([Path(f"runs/a/checkpoint-{step}") for step in (40, 10, 30, 20)])
    sweep.run()
    rows = saved(tmp_path)["checkpoints"]
    assert [(row["step"], row["state"]) for row in rows] == [
        (10, "measured"), (20, "failed"), (30, "failed"), (40, "measured"),
    ]  # fmt: skip
    assert rows[1]["error"] == "20 is broken"
    assert rows[2]["error"] == "OutOfMemoryError: device memory is full"
    assert "measuring runs/a/checkpoint-30 failed" in caplog.text  # with its traceback: it may be our own bug
    assert "checkpoint-20" not in caplog.text
    assert MirResult.load(tmp_path / rows[3]["result"]).mir == rows[3]["mir"]


def test_a_kill_leaves_every_finished_checkpoint_in_the_files(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.add([Path(f"runs/a/checkpoint-{step}") for step in (10, 99, 120)])
    with pytest.raises(Killed):
        sweep.run()
    assert [row["state"] for row in saved(tmp_path)["checkpoints"]] == ["measured", "running", "waiting"]
    table = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["step"], bool(row["mir"])) for row in table] == [("10", True), ("99", False), ("120", False)]
    assert float(table[0]["mir"]) == saved(tmp_path)["checkpoints"][0]["mir"]


def test_a_checkpoint_that_comes_back_with_other_files_is_measured_again(tmp_path: Path) -> None:
    seen: list[Path] = []

    def noted(checkpoint: Path, path: Path) -> Measured:
        seen.append(checkpoint)
        return measured_by_step(checkpoint, path)

    sweep = Sweep(tmp_path, noted)
    for _ in range(2):
        sweep.add([Path("a/checkpoint-1")])
        sweep.run()
    assert seen == [Path("a/checkpoint-1")] * 2
    assert len(sweep.entries) == 1


def test_checkpoints_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.add([Path("/x/run/checkpoint-1"), Path("/y/run/checkpoint-1"), Path("/y/llava")])
    assert [one.name for one in sweep.entries] == ["run_checkpoint-1", "llava", "y_run_checkpoint-1"]


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("runs/a/step-5", "a_step-5"),
        ("runs/a/global_step20", "a_global_step20"),
        ("runs/a/final", "final"),
        ("org/model", "model"),
        ("runs/a/step-5/", "a_step-5"),
        ("runs/a/step-5/..", "a"),
        ("..", "runs"),
        (".", "a"),
    ],
)
def test_a_checkpoint_s_folder_is_called_after_it(
    checkpoint: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "a")
    assert result_name(Path(checkpoint)) == name


def test_a_later_sweep_leaves_every_saved_result_in_its_folder(tmp_path: Path) -> None:
    for names in (["b/final"], ["a/final", "b/final", "c/b/final"], ["c/b/final"]):
        sweep = Sweep(tmp_path, measured_by_step)
        sweep.add(map(Path, names))
        sweep.run()
    held = {path.parent.name: MirResult.load(path).checkpoint for path in tmp_path.glob("*/mir.json")}
    assert held == {"final": "b/final", "a_final": "a/final", "b_final": "c/b/final"}


def test_an_earlier_result_of_files_that_changed_since_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    result = loaded_alike(toy_result(folder))
    prints = {**result.fingerprints, "checkpoint": folder_fingerprint([folder])}
    facts = {**result.facts, "source_folders": [str(folder)]}
    dataclasses.replace(result, fingerprints=prints, facts=facts).save(tmp_path / "out/one/mir.json")
    for n_left_out in (0, 1):
        sweep = Sweep(tmp_path / "out", measured_by_step)
        assert len(sweep.recall(SAMPLES.fingerprint, MirConfig(), "loaded alike")) == n_left_out
        assert len(sweep.entries) == 1 - n_left_out
        (folder / "config.json").write_text('{"changed": true}')


def loaded_alike(result: MirResult) -> MirResult:
    return dataclasses.replace(result, fingerprints={**result.fingerprints, "loading": "loaded alike"})


def test_results_of_checkpoints_that_a_training_deleted_still_count(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    (runs / "checkpoint-3").mkdir(parents=True)
    for name, checkpoint in {
        "gone": runs / "checkpoint-2", "there": runs / "checkpoint-3", "elsewhere": tmp_path / "checkpoint-4",
    }.items():  # fmt: skip
        loaded_alike(toy_result(checkpoint)).save(out / name / "mir.json")
    other = dataclasses.replace(toy_result(runs / "checkpoint-1"), config=MirConfig(outliers="none"))
    loaded_alike(other).save(out / "other" / "mir.json")
    toy_result(runs / "checkpoint-5").save(out / "older" / "mir.json")  # does not say how it was loaded
    (out / "damaged").mkdir()
    (out / "damaged" / "mir.json").write_text("{")
    sweep = Sweep(out, measured_by_step)
    left_out = sweep.recall(SAMPLES.fingerprint, MirConfig(), "loaded alike")
    assert {path.parent.name for path in left_out} == {"other", "older"}
    assert {(one.name, one.state, one.asked) for one in sweep.entries} == {
        ("gone", "kept", False), ("there", "kept", False), ("elsewhere", "kept", False),
    }  # fmt: skip
    assert all(one.result is not None for one in sweep.entries)
    sweep.entries.clear()
    sweep.recall("other samples", MirConfig(), "loaded alike")
    sweep.recall(SAMPLES.fingerprint, MirConfig(), "another base LLM or dtype")
    assert sweep.entries == []


def test_a_narrower_sweep_does_not_shrink_the_table(tmp_path: Path) -> None:
    def alike(checkpoint: Path, path: Path) -> Measured:
        result = loaded_alike(measured_by_step(checkpoint, path).result)
        result.save(path)
        return Measured(result, kept=False)

    wide = Sweep(tmp_path, alike)
    wide.add([Path(f"runs/a/checkpoint-{step}") for step in (10, 20, 40)])
    wide.run()
    before = saved(tmp_path)
    narrow = Sweep(tmp_path, alike)
    narrow.recall(SAMPLES.fingerprint, MirConfig(), "loaded alike")
    narrow.add([Path("runs/a/checkpoint-40")])
    narrow.run()
    assert [row["step"] for row in csv.DictReader((tmp_path / "sweep.csv").open())] == ["10", "20", "40"]
    assert saved(tmp_path)["selection"] == before["selection"]
    assert [(one.step, one.state, one.asked) for one in narrow.entries] == [
        (10, "kept", False), (20, "failed", False), (40, "measured", True),
    ]  # fmt: skip


def test_what_is_left_out_is_listed_with_its_reason_and_is_no_failure(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.leave_out({Path("runs/a/checkpoint-30"): "not measured: config.json is not written yet."})
    [row] = saved(tmp_path)["checkpoints"]
    assert (row["state"], row["step"]) == ("failed", 30)
    assert "config.json" in row["error"]
    assert not sweep.entries[0].asked


def test_a_run_that_is_reached_through_a_link_is_one_run(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    toy = loaded_alike(toy_result(tmp_path / "run" / "checkpoint-1"))
    dataclasses.replace(toy, place=str(tmp_path / "run" / "checkpoint-1")).save(tmp_path / "out" / "one" / "mir.json")
    sweep = Sweep(tmp_path / "out", measured_by_step)
    sweep.recall(SAMPLES.fingerprint, MirConfig(), "loaded alike")
    sweep.add([tmp_path / "link" / "checkpoint-2"])
    assert (len(sweep.entries), sweep.n_runs) == (2, 1)


def test_the_time_left_is_told_from_what_was_measured(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.add([Path(f"runs/a/checkpoint-{step}") for step in (1, 2, 3)])
    assert sweep.seconds_left() is None
    sweep.entries[0] = dataclasses.replace(sweep.entries[0], state="measured", seconds=30.0)
    assert sweep.seconds_left() == 60.0


def test_the_folder_of_a_run_stands_for_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/checkpoint-1", "runs/a/checkpoint-2", "runs/b/checkpoint-3"):
        Path(name).mkdir(parents=True)
        Path(name, "config.json").write_text("{}")
    inside = [Path("runs/a/checkpoint-1"), Path("runs/a/checkpoint-2")]
    assert sorted(found_checkpoints(["runs/a"])) == inside
    assert len(found_checkpoints(["runs"])) == 3
    Path("runs/a/config.json").write_text("{}")  # the last one of the run
    assert sorted(found_checkpoints(["runs/a"])) == [Path("runs/a"), *inside]
    assert found_checkpoints(["runs/a/checkpoint-2"]) == [inside[1]]


def test_results_that_cannot_be_ranked_together_cost_the_verdict_and_nothing_else(tmp_path: Path) -> None:
    def unlike(checkpoint: Path, path: Path) -> Measured:
        measured = measured_by_step(checkpoint, path)
        prints = {**measured.result.fingerprints, "protocol": str(checkpoint)}
        return Measured(dataclasses.replace(measured.result, fingerprints=prints), kept=False)

    sweep = Sweep(tmp_path, unlike)
    sweep.add([Path("a/checkpoint-1"), Path("a/checkpoint-2")])
    sweep.run()
    assert saved(tmp_path)["selection"] is None
    assert "were not measured alike" in saved(tmp_path)["selection_impossible"]
    assert all(row["mir"] for row in saved(tmp_path)["checkpoints"])


def test_patterns_take_checkpoint_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/checkpoint-1", "a/checkpoint-2", "a/logs"):
        Path(name).mkdir(parents=True)
    Path("a/checkpoint-1/config.json").write_text("{}")  # the other has still to say why it is not measured
    assert found_checkpoints(["a/*", "named"]) == [*map(Path, ("a/checkpoint-1", "a/checkpoint-2", "named"))]
    with pytest.raises(MirError, match=r"'b/\*' matches no checkpoint folder"):
        found_checkpoints(["b/*"])


# The commands


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run with two checkpoints and its last one, and a broken checkpoint."""
    case = require_golden("llava/llava_projector")
    for step, source in ((20, case / "model" / "checkpoint-20"), (30, case / "model"), (40, case / "model")):
        folder = tmp_path / "runs" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("config.json", "mm_projector.bin"):
            shutil.copy(source / name, folder)
    weights = tmp_path / "runs" / "checkpoint-40" / "mm_projector.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    return tmp_path / "runs"


def options() -> list[object]:
    case = require_golden("llava/llava_projector")
    return [
        "--base-llm", case / "base_llm", "--vision-tower", case / "vision_tower",
        "--embedded", "--n-samples", 3, "--device", "cpu",
    ]  # fmt: skip


def test_a_sweep_prints_its_verdict_goes_on_after_a_failure_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", f"{runs}/checkpoint-*", *options(), "--out", out]
    assert mir(monkeypatch, *arguments) == 5
    printed = capsys.readouterr()
    assert "failed: runs_checkpoint-40" in printed.out
    assert "1/3 runs_checkpoint-20: measured" in printed.err
    assert {path.name for path in (out / "report").iterdir()} >= {"report.xlsx", "report.csv"}
    rows = saved(out)["checkpoints"]
    assert [row["state"] for row in rows] == ["measured", "measured", "failed"]

    monkeypatch.setattr("mir_plugin.measurement.measure.layer_features", None)  # nothing is measured a second time
    assert mir(monkeypatch, *arguments, "--json") == 5
    printed = capsys.readouterr()
    again = json.loads(printed.out)  # nothing else on standard output
    assert [row["state"] for row in again["checkpoints"]] == ["kept", "kept", "failed"]
    assert [row["mir"] for row in again["checkpoints"]] == [row["mir"] for row in rows]

    code = mir(monkeypatch, "select", out, "--json")
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == again["selection"]
    assert code == CODES[verdict["outcome"]]
    shutil.rmtree(runs / "checkpoint-40")
    assert mir(monkeypatch, *arguments, "--no-report") == code  # the same verdict, the same code
    capsys.readouterr()
    assert mir(monkeypatch, "select", out) == code
    assert verdict["sentence"] in capsys.readouterr().out


def test_indicators_recorded_beside_results_are_columns_if_they_are_of_the_same_samples_and_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = {"samples": {"fingerprint": SAMPLES.fingerprint}, "values": {"mir": 9.0, "kid_sum": 0.5}}
    documents = {
        1: json.dumps({**right, "checkpoint_fingerprint": "toy-1-8-1"}),
        2: json.dumps({**right, "checkpoint_fingerprint": "toy-1-8-1"}),  # step 2 had other weights when it was made
        3: json.dumps({**right, "checkpoint_fingerprint": "toy-1-8-3", "samples": {"fingerprint": "of others"}}),
        4: "{",
    }
    for step, text in documents.items():
        (tmp_path / f"a_checkpoint-{step}").mkdir()
        (tmp_path / f"a_checkpoint-{step}" / "indicators.json").write_text(text)
    sweep = Sweep(tmp_path, measured_by_step)
    sweep.add([Path(f"a/checkpoint-{step}") for step in (1, 2, 3, 4, 5)])
    sweep.run()
    assert [row["indicators"] for row in saved(tmp_path)["checkpoints"]] == [right["values"], {}, {}, {}, {}]
    table = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["kid_sum"] for row in table] == ["0.5", "", "", "", ""]
    assert float(table[0]["mir"]) == saved(tmp_path)["checkpoints"][0]["mir"]
    assert caplog.text.count("indicators.json is not used") == 1


def test_a_sweep_adds_indicators_to_what_it_measured_before_and_to_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", runs / "checkpoint-20", *options(), "--out", out]
    assert mir(monkeypatch, *arguments, "--no-report") == 0
    measured = (out / "runs_checkpoint-20" / "mir.json").read_bytes()
    assert mir(monkeypatch, *arguments, "--indicators", "--n-questions", 0) == 0
    [row] = saved(out)["checkpoints"]
    assert row["state"] == "kept"
    assert (out / "runs_checkpoint-20" / "mir.json").read_bytes() == measured
    assert row["indicators"]["mir"] == pytest.approx(row["mir"], rel=SAME_FEATURES)
    [line] = csv.DictReader((out / "sweep.csv").open())
    assert float(line["caption_loss"]) == row["indicators"]["caption_loss"]
    [shown] = csv.DictReader((out / "report" / "report.csv").open())
    assert float(shown["caption_loss"]) == pytest.approx(row["indicators"]["caption_loss"])
    assert "in_context_accuracy" not in row["indicators"]
    assert mir(monkeypatch, *arguments, "--indicators", "--n-questions", 3, "--no-report") == 0
    [row] = saved(out)["checkpoints"]
    assert row["state"] == "kept"
    assert 0 <= row["indicators"]["in_context_accuracy"] <= 100
    capsys.readouterr()
    assert mir(monkeypatch, *arguments, "--indicators", "--device-memory", "1GB") == 1
    assert "leave out --device-memory or --indicators" in capsys.readouterr().err


def test_the_training_loss_of_a_checkpoint_from_the_hub_is_found_in_its_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path
) -> None:
    copy = runs / "checkpoint-20"
    (copy / "trainer_state.json").write_text('{"log_history": [{"step": 20, "loss": 1.25}]}')
    monkeypatch.setattr("mir_plugin.model_adapters.weights.hub.hub_folder", lambda _: copy)
    out = tmp_path / "out"
    arguments = ["sweep", "org/model", *options(), "--out", out, "--indicators", "--n-questions", 0, "--no-report"]
    assert mir(monkeypatch, *arguments) == 0
    [row] = saved(out)["checkpoints"]
    assert (row["name"], row["indicators"]["training_loss"]) == ("model", 1.25)


def test_a_watch_measures_what_is_there_and_what_lands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> None:
    later, out = tmp_path / "checkpoint-50", tmp_path / "out"
    shutil.copytree(runs / "checkpoint-30", later)

    def land() -> None:
        while not (out / "runs_checkpoint-30" / "mir.json").exists():
            time.sleep(0.02)
        shutil.move(later, runs / "checkpoint-50")

    training = threading.Thread(target=land)
    training.start()
    arguments = ["sweep", "--watch", runs, *options(), "--out", out]
    code = mir(monkeypatch, *arguments, "--watch-settle", 0.2, "--watch-idle", 5, "--no-report")
    training.join()
    assert code == CODES[saved(out)["selection"]["outcome"]]
    rows = {row["step"]: row for row in saved(out)["checkpoints"]}
    assert {step: row["state"] for step, row in rows.items()} == {
        20: "measured",
        30: "measured",
        40: "failed",
        50: "measured",
    }
    # The broken checkpoint never became complete: it is listed with its reason, and no failure of the sweep.
    assert rows[40]["error"].startswith("not measured: ")
    assert not (out / "report").exists()
    assert "3/3 runs_checkpoint-50: measured" in capsys.readouterr().err


def test_a_plain_kill_ends_a_watch_as_ctrl_c_does_with_verdict_and_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> None:
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        while not (out / "runs_checkpoint-30" / "mir.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        code = mir(monkeypatch, "sweep", "--watch", runs, *options(), "--out", out, "--watch-settle", 0.2)
        verdict = saved(out)["selection"]  # the kill may have come before the second was in the table
        assert code == (CODES[verdict["outcome"]] if len(verdict["ranking"]) > 1 else 0)
    finally:
        signal.signal(signal.SIGTERM, before)
        stopping.join()
    assert "has the lowest MIR" in capsys.readouterr().out
    assert (out / "report" / "report.xlsx").exists()


def test_tables_fit_a_plain_terminal_with_long_names_steps_and_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    entries = [
        SweepEntry(
            Path("run"), f"llava-pretrain-mlp_checkpoint-{step}", "run", step, "measured", result, seconds=12345.6
        )
        for step in (100_000, 100_500)
        if (result := toy_result(Path(f"run/checkpoint-{step}"), seed=step))
    ]
    Console().print(sweep_table(entries, entries))
    print_ranking(select([Candidate(one.name, one.run, one.step, one.result) for one in entries if one.result]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert [line.split()[-1] for line in lines if " 12345.6 " in line] == ["*", "measured"]
    assert {line.split()[-1] for line in lines if re.match(r" \d ", line)} <= {"best", "worse", "undecided", "0.01"}
    assert len([line for line in lines if re.match(r" \d ", line)]) == 2


def test_the_live_table_shows_what_runs_and_keeps_messages_above_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress_bars_see: list[bool] = []

    def slow(checkpoint: Path, path: Path) -> Measured:
        (path.parent / "mir.partial.jsonl").parent.mkdir()
        (path.parent / "mir.partial.jsonl").write_text("key\nlayer 1\nlayer 2\n")
        print("0 %\r100 %\rbar ended", file=sys.stderr)
        progress_bars_see.append(sys.stderr.isatty())
        waited_since = time.monotonic()  # the table is drawn four times a second
        while "2 layers" not in terminal.getvalue() and time.monotonic() - waited_since < HANGS:
            time.sleep(0.05)
        return measured_by_step(checkpoint, path)

    display = SweepDisplay(shown=True)
    sweep = Sweep(tmp_path, slow, on_change=display.refresh)
    with display.of(sweep):
        sweep.add([Path("a/checkpoint-1")])
        sweep.run()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"\d s, 2 layers +running", drawn)
    assert "1 of 1 checkpoints" in drawn
    assert "bar ended" in drawn and "100 %" not in drawn
    assert progress_bars_see == [False]
    assert sys.stderr is terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--embedded"], "--watch"),
        (["sweep", "nothing/*", "--embedded"], "'nothing/*' matches no checkpoint folder"),
        (["sweep", "--watch", "nowhere", "--embedded"], "--watch nowhere: no such folder"),
        (["select", "nowhere"], "'nowhere' does not exist"),
        (["select", "."], "'.' holds no mir.json"),
    ],
)
def test_a_mistake_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mir(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_measured_twice_is_one_candidate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = toy_result(Path("run/checkpoint-1"))
    layer = dataclasses.replace(result.layers[0], distance=1e9)
    older = dataclasses.replace(result, mir=9.0, layers=(layer,), created="2000-01-01T00:00:00+00:00")
    for name, one in {"new": result, "old": older}.items():
        one.save(tmp_path / name / "mir.json")
    toy_result(Path("run/checkpoint-2"), seed=1).save(tmp_path / "second" / "mir.json")
    mir(monkeypatch, "select", tmp_path, "--json")
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    assert sorted(one["step"] for one in ranking) == [1, 2]
    assert 9.0 not in [one["mir"] for one in ranking]
