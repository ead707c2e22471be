"""Names are labels: checkpoints are known by where they were and what they hold."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import mir

from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import distinct_names, place_of
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.records import ParsedSources
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.embedded import micro_checkpoints
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.candidates import candidates_in, found_checkpoints

from toy import ToyAdapter, toy_samples


@functools.cache
def toy_result() -> MirResult:
    return measure(ToyAdapter(n_layers=1, width=8), SampleSet(tuple(toy_samples(3))), checkpoint="toy")


def save(
    path: Path, checkpoint: str, weights: str, *, place: Path | str = "", older: bool = False, **changes: object
) -> None:
    """A ``mir.json``; ``older`` ones are of schema 1, which knows no place."""
    prints = {**toy_result().fingerprints, "checkpoint": weights}
    older_fields = {"schema_version": 1, "inputs": {}} if older else {}
    result = dataclasses.replace(
        toy_result(), checkpoint=checkpoint, fingerprints=prints, place=str(place), **{**older_fields, **changes}
    )
    result.save(path / "mir.json")


def report_of(*sources: Path) -> Board:
    parsed: ParsedSources = read_sources([str(source) for source in sources])
    return join(parsed)


def scores_of(folder: Path, model: str, score: float, date: str = "20200101_000000") -> None:
    folder.mkdir(parents=True)
    (folder / f"{date}_results.json").write_text(
        json.dumps({"results": {"mmstar": {"average,none": score}}, "model_name": model, "date": date})
    )


@pytest.mark.parametrize("older", [True, False])
def test_equal_relative_names_of_two_projects_are_two_checkpoints_and_two_runs(tmp_path: Path, older: bool) -> None:
    for project in ("a", "b"):
        for step in (100, 200):
            name = f"runs/checkpoint-{step}"
            place = "" if older else tmp_path / project / name
            save(tmp_path / project / f"sw/{step}", name, f"{project}{step}", place=place, older=older)
    candidates = candidates_in([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len({one.name for one in candidates}) == 4
    assert sorted((one.run.split("/")[-2 - older], one.step) for one in candidates) == [
        ("a", 100), ("a", 200), ("b", 100), ("b", 200),
    ]  # fmt: skip
    board = report_of(tmp_path / "a", tmp_path / "b")
    assert len({row.name for row in board.rows}) == len({row.identity for row in board.rows}) == 4


def test_older_results_of_one_project_keep_their_relative_names(tmp_path: Path) -> None:
    for step in (100, 200):
        save(tmp_path / f"sw/{step}", f"runs/checkpoint-{step}", f"w{step}", older=True)
    assert {one.run for one in candidates_in([str(tmp_path)])} == {"runs"}


def test_scores_under_a_name_of_two_projects_are_shown_apart(tmp_path: Path) -> None:
    for project in ("a", "b"):
        save(tmp_path / project / "sw/1", "runs/one", project, place=tmp_path / project / "runs/one")
    scores_of(tmp_path / "lm/x", "runs/one", 0.5)
    board = report_of(tmp_path)
    assert sorted((row.mir is None, bool(row.scores)) for row in board.rows) == [
        (False, False), (False, False), (True, True),
    ]  # fmt: skip
    assert any(
        "several checkpoints" in problem.what and str(tmp_path / "a") in problem.what for problem in board.problems
    )


def test_scores_under_the_relative_name_of_one_checkpoint_join_it(tmp_path: Path) -> None:
    save(tmp_path / "sw/1", "runs/one", "w", place="/elsewhere/runs/one")
    scores_of(tmp_path / "lm/x", "runs/one", 0.5)
    [row] = report_of(tmp_path).rows
    assert row.mir is not None
    assert row.scores


def linked(tmp_path: Path, link: str, target: str, when: int | None = None) -> Path:
    path = tmp_path / link
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    if when is not None:
        os.utime(path, (when, when), follow_symlinks=False)
    return path


@pytest.mark.parametrize("moved", [True, False])
def test_a_link_joins_scores_of_the_folder_it_led_to_then(tmp_path: Path, moved: bool) -> None:
    for step in (200, 300):
        (tmp_path / f"runs/checkpoint-{step}").mkdir(parents=True)
        save(tmp_path / f"mir/{step}", f"runs/checkpoint-{step}", str(step), place=tmp_path / f"runs/checkpoint-{step}")
    evaluated = datetime.datetime(2020, 1, 1).timestamp()
    days = 2 if moved else -2
    link = linked(tmp_path, "runs/latest", "checkpoint-300", when=int(evaluated) + days * 86400)
    scores_of(tmp_path / "lm/x", str(link), 0.2)
    board = report_of(tmp_path / "lm", tmp_path / "mir")
    scored = {row.step for row in board.rows if row.scores}
    assert scored == ({None} if moved else {300})
    assert any(str(link) in problem.what for problem in board.problems) is moved


def test_a_result_measured_through_a_link_stays_with_the_folder(tmp_path: Path) -> None:
    for step in (200, 300):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        link = linked(tmp_path, "latest", folder.name)
        save(tmp_path / f"mir/{step}", str(link), f"w{step}", place=place_of(str(link)))
    assert [row.step for row in report_of(tmp_path / "mir").rows] == [200, 300]
    assert sorted(one.step or 0 for one in candidates_in([str(tmp_path / "mir")])) == [200, 300]


def test_one_checkpoint_under_several_spellings_and_links_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    linked(tmp_path, "runs/latest", "checkpoint-1")
    monkeypatch.chdir(tmp_path)
    assert found_checkpoints(["runs/latest", "./runs/../runs/checkpoint-1", "runs/*", str(folder)]) == [
        Path("runs/checkpoint-1")
    ]
    for index, name in enumerate(("runs/latest", "runs/checkpoint-1", str(folder))):
        save(tmp_path / f"out/{index}", name, "w", place=place_of(name))
    assert len(candidates_in(["out"])) == len(report_of(tmp_path / "out").rows) == 1


def test_a_name_that_exists_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run[1]", "run1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert found_checkpoints(["run[1]"]) == [Path("run[1]")]


def test_results_of_one_checkpoint_in_two_dtypes_have_two_names(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        inputs = {**toy_result().inputs, "weights_dtype": dtype, "compute_dtype": dtype}
        save(tmp_path / dtype, "/m/one", "w", place="/m/one", inputs=inputs)
    assert {one.name for one in candidates_in([str(tmp_path)])} == {"one (float32)", "one (bfloat16)"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/x", "/b/x"], ["a_x", "b_x"]),
        (["/a/r/step-1", "/b/r/step-1", "/b/r/step-2"], ["a_r_step-1", "b_r_step-1", "r_step-2"]),
        (["/x", "/a/x"], ["x", "a_x"]),
        (["a/b_c", "a_b/c"], ["b_c", "c"]),
        (["/p/a/b_c", "/p/a_b/c", "/q/c"], ["b_c", "a_b_c", "q_c"]),
    ],
)
def test_names_are_the_shortest_ends_of_paths_that_tell_checkpoints_apart(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names
    assert distinct_names([Path(path) for path in reversed(paths)]) == names[::-1]


def checkpoint_below(folder: Path) -> None:
    (folder / "runs/a").mkdir(parents=True)
    (folder / "runs/a/config.json").write_text(json.dumps({"of": folder.name}))


def test_a_shared_folder_keeps_the_result_of_another_project_of_the_same_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter(n_layers=1, width=8))
    out = tmp_path / "shared"

    def run(project: str, name: str = "runs/a", **protocol: Any) -> MirResult:
        monkeypatch.chdir(tmp_path / project)
        samples, config = SampleSet(tuple(toy_samples(3))), MirConfig(**protocol)
        return Measurement(Checkpoint(Path(name), LoadOptions(device="cpu")), samples, config, out).run()

    for project in ("one", "other"):
        checkpoint_below(tmp_path / project)
    first = run("one")
    before = (out / "mir.json").read_bytes()
    with pytest.raises(MirError, match=rf"{tmp_path / 'one/runs/a'}.*--force"):
        run("other")
    assert (out / "mir.json").read_bytes() == before
    (tmp_path / "one/link").symlink_to("runs/a")
    assert run("one", "link").created == first.created, "another spelling of the same folder answers"
    assert run("one", "link", outliers="none").config.outliers == "none", "and may replace"


def test_compare_takes_two_results_of_the_same_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for project in ("one", "other"):
        save(tmp_path / project, "runs/a", project, place=tmp_path / project / "runs/a")
    assert mir(monkeypatch, "compare", tmp_path / "one", tmp_path / "other") == 0
    printed = capsys.readouterr().out
    assert "A  runs/a" not in printed
    assert all(project in printed for project in ("one", "other"))


@pytest.mark.slow
def test_checkpoints_that_differ_in_the_processor_alone_are_two_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good", "fixed"):
        shutil.copytree(micro_checkpoints()[0], tmp_path / "runs" / name)
    settings = tmp_path / "runs/fixed/preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "image_mean": [0.0, 0.0, 0.0]}))
    options = ["--embedded", "--n-samples", 2, "--device", "cpu", "--out", "sw"]
    assert mir(monkeypatch, "sweep", "runs/good", "runs/fixed", *options) in (0, 3)  # two samples may not decide
    swept = {row["name"]: row["mir"] for row in json.loads((tmp_path / "sw/sweep.json").read_text())["checkpoints"]}
    board = report_of(tmp_path / "sw/good", tmp_path / "sw/fixed")
    assert {row.name: row.mir for row in board.rows} == swept
    assert len(set(swept.values())) == 2
    assert any("image_mean" in problem.what for problem in board.problems)
