"""Readers of host trees, against the recorded ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mir_plugin.reports.board.headlines import Headlines, headline_entries
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.records import ParsedSources
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.read.vlmevalkit import data_set_name, read_model_dir

GOLDEN = Path(__file__).parents[1] / "golden"
LMMS, VLM = GOLDEN / "lmms_eval", GOLDEN / "vlmevalkit"


def recorded_headlines() -> list[tuple[str, str, dict]]:
    data = json.loads((LMMS / "headlines.json").read_text())
    return [(model, task, line) for model, tasks in data.items() for task, line in tasks.items()]


@pytest.fixture(scope="module")
def lmms_board():
    return join(read_sources([LMMS / "results"]))


@pytest.mark.parametrize(("model", "task", "line"), recorded_headlines())
def test_every_recorded_lmms_eval_headline_is_on_the_board(lmms_board, model, task, line):
    entries = [e for e in lmms_board.entries if e.identity == model and e.task == task and e.used]
    entry = next(e for e in entries if e.metric == line["key"])
    assert entry.raw_value == line["value"]
    assert entry.metric == line["key"]
    assert entry.value == pytest.approx(line["value"] * {"0-1": 100, "0-100": 1}[line["scale"]])


def test_a_newer_partial_run_does_not_replace_a_complete_one_and_that_is_stated(lmms_board):
    row = next(row for row in lmms_board.rows if row.identity == "models/tiny-llava-c")
    assert row.scores["seed_image"] == pytest.approx(77.7778, abs=1e-3)
    assert any(p.kind == "superseded" and "partial" in p.what and "seed_image" in p.what for p in lmms_board.problems)


def test_submissions_are_not_results_files():
    assert read_sources([LMMS / "results"]).problems == ()


def expected_values() -> list[tuple[str, str, str, str, dict]]:
    data = json.loads((VLM / "expected.json").read_text())
    return [
        (tree, model, data_set, run, line)
        for tree, models in data.items()
        for model, data_sets in models.items()
        for data_set, runs in data_sets.items()
        for run, line in runs.items()
    ]


NAMES_OF_FIELDS = {
    "total": None,
    "perception": "none|perception",
    "reasoning": "none|reasoning",
    "Overall (F1)": "Overall|Overall",
    "Overall": "none|Overall",
    "dev": "dev|Overall",
    "none": "none|Overall",
    "acc": "Overall|acc",
    "precision": "Overall|precision",
    "recall": "Overall|recall",
}


@pytest.mark.parametrize(("tree", "model", "data_set", "run", "line"), expected_values())
def test_every_recorded_vlmevalkit_value_is_read(tree, model, data_set, run, line):
    parsed = read_model_dir(VLM / tree / model)
    found = {s.metric: s.value for s in parsed.scores if s.task == data_set and Path(s.run_id).name == run}
    if line["values"] is None:
        assert not found
        assert any(p.where == f"{model} {data_set}" and p.kind == "missing" for p in parsed.problems)
        return
    for field, value in line["values"].items():
        if NAMES_OF_FIELDS[field]:
            assert found[NAMES_OF_FIELDS[field]] == value


def test_vlmevalkit_scores_come_to_the_scale_of_the_benchmark():
    board = join(read_sources([VLM / "outputs"]))
    row = next(row for row in board.rows if row.name == "llava_v1.5_tiny")
    assert row.scores == pytest.approx(
        {
            "mmstar": 20.8333,
            "mme": 500.0,
            "mme_cognition": 216.6667,
            "mmbench": 61.1111,
            "mmbench_v11": 61.1111,
            "textvqa": 20.8333,
            "pope": 23.0769,
            "MyBench_MCQ": 0.1667,  # nobody declared it: shown as it is
        },
        abs=1e-3,
    )


def test_the_flat_layout_is_read(tmp_path):
    model = tmp_path / "llava_v1.5_tiny"
    model.mkdir()
    run = VLM / "outputs" / "llava_v1.5_tiny" / "T20261121-004534"
    for name in ("MMStar_acc.csv", "MME_score.csv"):
        shutil.copy(run / f"llava_v1.5_tiny_{name}", model)
    assert {score.task for score in read_sources([tmp_path]).scores} == {"MMStar", "MME"}


def test_a_judge_between_data_set_and_suffix_is_not_part_of_the_name(tmp_path):
    run = tmp_path / "m" / "T20261121-004534"
    run.mkdir(parents=True)
    (run / "m_MMVet_gpt-4-turbo_score.csv").write_text("Category,tot,acc\nrec,10,20.0\nOverall,30,31.1\n")
    board = join(read_sources([tmp_path]))
    assert board.rows[0].scores == {"mmvet": 31.1}


def test_a_longer_data_set_name_wins_over_its_beginning():
    assert data_set_name("MMBench_DEV_EN_V11", ["MMBench_DEV_EN", "MMBench_DEV_EN_V11"]) == "MMBench_DEV_EN_V11"


def test_multiple_choice_with_a_verifier_is_in_percent(tmp_path):
    run = tmp_path / "m" / "T20261121-004534"
    run.mkdir(parents=True)
    (run / "m_MMStar_acc.csv").write_text("Category,Total,Hit,Accuracy\nmath,2,1,50.0\nOverall,4,3,75.0\n")
    assert join(read_sources([tmp_path])).rows[0].scores == {"mmstar": 75.0}


def test_argv_of_status_files_is_never_copied(tmp_path):
    run = tmp_path / "m" / "T20261121-004534"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"datasets": {}, "argv": ["--key", "sk-secret"], "commit": "abc"}))
    (run / "m_MMStar_acc.csv").write_text("split,Overall\nnone,0.5\n")
    assert "sk-secret" not in repr(read_sources([tmp_path]))


@pytest.mark.parametrize("cut", [10, 2000, 15000])
def test_a_half_written_results_file_is_named_and_the_rest_goes_through(tmp_path, cut):
    tree = tmp_path / "results"
    shutil.copytree(LMMS / "results", tree)
    damaged = tree / "models__tiny-llava-a" / "20261121_095319_results.json"
    damaged.write_text(damaged.read_text()[:cut])
    board = join(read_sources([tree]))
    assert {row.identity for row in board.rows} == {"models/tiny-llava-b", "models/tiny-llava-c"}
    assert [p.where for p in board.problems if p.kind == "unreadable"] == [str(damaged)]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[]", b"null", b'{"results": []}', b'{"results": {"mmstar": 3}}', b"{}" * 3]
)
def test_results_files_of_any_content_become_problems(tmp_path, content):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    path.write_bytes(content)
    parsed = read_sources([tmp_path])
    assert [p.where for p in parsed.problems] == [str(path)]
    assert parsed.scores == ()


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b'"split","Overa', b"split,Overall\nnone,\n"])
def test_damaged_vlmevalkit_scores_are_named_and_the_rest_goes_through(tmp_path, content):
    tree = tmp_path / "outputs"
    shutil.copytree(VLM / "outputs", tree)
    damaged = tree / "sharegpt4v_tiny" / "T20261121-004534" / "sharegpt4v_tiny_MMStar_acc.csv"
    damaged.write_bytes(content)
    parsed = read_sources([tree])
    assert str(damaged) in [p.where for p in parsed.problems if p.kind == "unreadable"]
    assert {"MME", "POPE"} <= {s.task for s in parsed.scores if s.checkpoint.label == "sharegpt4v_tiny"}


def test_values_that_are_no_scores_are_left_out(tmp_path):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    metrics = {
        "alias": "mmstar",
        "average,none": "0.25",
        "average_stderr,none": 0.1,
        "average_stderr_clt,none": 0.1,
        "science & technology,none": 0,
        "math,none": "N/A",
        "x,none": float("nan"),
        "y,none": None,
        "z,none": [],
        "bypass,none": 999,
        " ": "",
    }
    data = {"results": {"mmstar": metrics, "group": {" ": ""}}, "group_subtasks": {"group": ["mmstar"]}}
    path.write_text(json.dumps(data | {"model_name": "m", "config": {"limit": None}, "date": "20261121_095319"}))
    parsed = read_sources([tmp_path])
    assert {s.metric: s.value for s in parsed.scores} == {"average,none": 0.25, "science & technology,none": 0.0}
    assert parsed.problems == ()


def test_a_task_without_any_score_is_listed_once(tmp_path):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": {"mmvet": {"gpt_eval_score,none": "N/A"}}, "model_name": "m", "config": {}}))
    assert [p.kind for p in read_sources([tmp_path]).problems] == ["missing"]


def test_headlines_of_a_benchmark_are_declared_once_per_host():
    for host in ("lmms-eval", "vlmevalkit"):
        for benchmark in BENCHMARKS:
            seen = [(t.casefold(), h.metric) for h in benchmark.headlines if h.host == host for t in h.tasks]
            assert len(seen) == len(set(seen)), benchmark.key


def test_nothing_gives_no_entries():
    assert headline_entries([], BENCHMARKS) == Headlines((), (), ())
    assert join(ParsedSources()).rows == ()


def test_the_tree_of_lmms_eval_before_september_2024_is_read(tmp_path):
    run = tmp_path / "0628_1511_llava_model_args_9a8b7c"
    run.mkdir()
    data = {
        "results": {"pope": {"pope_f1_score,none": 0.858, "alias": "pope"}},
        "configs": {},
        "versions": {"pope": "Yaml"},
        "model_configs": {"model": "llava", "model_args": "pretrained=liuhaotian/llava-v1.5-7b,device_map=auto"},
    }
    (run / "results.json").write_text(json.dumps(data))
    (tmp_path / "results.json").write_text('{"results": {"loss": 1.0}}')  # another program's
    (row,) = join(read_sources([tmp_path])).rows
    assert (row.identity, row.scores) == ("liuhaotian/llava-v1.5-7b", {"pope": 85.8})
    limited = data | {"model_configs": {**data["model_configs"], "limit": 8}}
    (run / "results.json").write_text(json.dumps(limited))
    assert not join(read_sources([tmp_path])).entries[0].complete


def test_the_file_of_the_openvlm_leaderboard_is_read(tmp_path):
    sets = {
        "META": {"Parameters": "7.2B", "key": 2023},
        "MMStar": {"Overall": 33.1, "math": 30.0},
        "MME": {"Overall": 1808.4, "Perception": 1506.2, "Cognition": 302.1},
        "OCRBench": {"Final Score": 318, "Final Score Norm": 31.8},
        "MMMU_VAL": {"Overall": 35.7},
        "SEEDBench_IMG": {"Overall": "N/A"},
    }
    (tmp_path / "OpenVLM.json").write_text(json.dumps({"time": "1", "results": {"LLaVA-v1.5-7B": sets}}))
    for source in (tmp_path, tmp_path / "OpenVLM.json"):
        (row,) = join(read_sources([source])).rows
        assert row.scores == {"mmstar": 33.1, "mme": 1506.2, "mme_cognition": 302.1, "ocrbench": 31.8, "mmmu": 35.7}
    (tmp_path / "OpenVLM.json").write_text('{"results": []}')
    assert [problem.severity for problem in read_sources([tmp_path]).problems] == ["error"]
