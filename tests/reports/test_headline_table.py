"""The declared headlines against the hosts' own task files and sets."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from host_benchmarks import OPENVLM, OPENVLM_OTHERS, UNDECLARED

from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.benchmarks import AVERAGE_SETS, LMMS_EVAL, VLMEVALKIT, find_headlines
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.sources import read_sources

OURS = {"mir_digits"}
# Spelt so in results files before November 2024.
PAST = {"mme_percetion_score"}


def lmms_eval_tasks() -> Path:
    return Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"


def test_every_folder_of_lmms_evals_tasks_has_a_headline_or_a_reason(names_by_folder):
    reasons = {folder: reason for reason, folders in UNDECLARED.items() for folder in folders.split()}
    missing = [
        folder
        for folder, names in names_by_folder.items()
        if folder not in reasons and not any(find_headlines(LMMS_EVAL, name, BENCHMARKS) for name in names)
    ]
    assert not missing, f"declare them in headline_table.py, or say why not in host_benchmarks.py: {missing}"


def test_a_folder_that_has_a_headline_needs_no_reason(names_by_folder):
    listed = [folder for folders in UNDECLARED.values() for folder in folders.split()]
    assert len(listed) == len(set(listed))
    declared = [
        folder
        for folder in listed
        if any(find_headlines(LMMS_EVAL, name, BENCHMARKS) for name in names_by_folder.get(folder, ()))
    ]
    assert not declared


def test_no_data_set_of_the_openvlm_leaderboard_lacks_a_headline():
    listed = [*OPENVLM.split(), *OPENVLM_OTHERS.split()]
    assert not [data_set for data_set in listed if not find_headlines(VLMEVALKIT, data_set, BENCHMARKS)]


def test_every_declared_data_set_of_vlmevalkit_is_its_own():
    """Its package may be absent, so those beyond the leaderboard's are listed by hand."""
    others = {
        "MMBench",
        "MMBench_V11",
        "MMBench_CN",
        "MMBench_CN_V11",
        "MathVision_MINI",
    }  # the first four: its authors'
    declared = {task for one in BENCHMARKS for line in one.headlines if line.host == VLMEVALKIT for task in line.tasks}
    assert declared == {*OPENVLM.split(), *OPENVLM_OTHERS.split(), *others}


def test_openvlms_eight_can_be_filled_by_vlmevalkit():
    fed = {benchmark.key for name in OPENVLM.split() for benchmark, _ in find_headlines(VLMEVALKIT, name, BENCHMARKS)}
    assert fed == set(AVERAGE_SETS["openvlm-8"].keys)


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: node.value)


def read_task(path: Path) -> dict:
    task = yaml.load(path.read_text(), Loader=Loader) or {}
    return {**read_task(path.parent / task["include"]), **task} if "include" in task else task


@pytest.fixture(scope="module")
def names_by_folder() -> dict[str, set[str]]:
    """Folder of lmms-eval's tasks → names of the tasks and groups in it."""
    found: dict[str, set[str]] = {}
    for path in lmms_eval_tasks().rglob("*yaml"):  # templates have no dot
        names = re.findall(
            r"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#]+)", path.read_text(), re.MULTILINE
        )
        found.setdefault(path.relative_to(lmms_eval_tasks()).parts[0], set()).update(names)
    return {folder: names for folder, names in found.items() if names}


@pytest.fixture(scope="module")
def metrics_of_tasks() -> dict[str, set[str]]:
    """Task or group of lmms-eval → its metrics, as its files say."""
    wanted = {task for one in BENCHMARKS for line in one.headlines if line.host == LMMS_EVAL for task in line.tasks}
    found: dict[str, set[str]] = {}
    for path in lmms_eval_tasks().rglob("*.yaml"):
        if not any(name in f"{path}{path.read_text()}" for name in wanted):
            continue
        task = read_task(path)
        name = task.get("task") if isinstance(task.get("task"), str) else task.get("group")
        lines = (task.get("metric_list") or []) + (task.get("aggregate_metric_list") or [])
        if name in wanted:
            found.setdefault(name, set()).update(line["metric"] for line in lines)
    return found


def test_every_declared_metric_of_lmms_eval_exists_there(metrics_of_tasks):
    declared = [
        (task, metric)
        for one in BENCHMARKS
        for line in one.headlines
        if line.host == LMMS_EVAL
        for task in line.tasks
        for metric in line.metrics
    ]
    missing = [
        (task, metric)
        for task, metric in declared
        if task not in OURS and metric not in PAST and metric not in metrics_of_tasks.get(task, ())
    ]
    assert not missing


def write(folder: Path, data_set: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{folder.name}_{data_set}").write_text(text)


def test_what_vlmevalkit_writes_for_openvlms_eight_comes_to_percent(tmp_path):
    model = tmp_path / "llava_v1.5_7b"
    write(model, "MMMU_DEV_VAL_acc.csv", '"split","Overall"\n"validation","0.36"\n"dev","0.33"\n')
    write(
        model,
        "MathVista_MINI_gpt-4-turbo_score.csv",
        '"Task&Skill","tot","acc"\n"Overall","1000","25.6"\n"FQA","9","1"\n',
    )
    write(
        model,
        "HallusionBench_score.csv",
        '"split","aAcc","fAcc","qAcc"\n"Overall","46.9","17.2","13.2"\n"VD","40","10","9"\n',
    )
    write(
        model,
        "OCRBench_score.json",
        json.dumps({"Text Recognition": 170, "Final Score": 318, "Final Score Norm": 31.8}),
    )
    write(model, "AI2D_TEST_acc.csv", '"split","Overall"\n"none","0.555"\n')
    write(model, "AI2D_TEST_NO_MASK_acc.csv", '"split","Overall"\n"none","0.6"\n')
    write(model, "SEEDBench2_Plus_acc.csv", '"split","Overall"\n"none","0.4"\n')
    (row,) = join(read_sources([tmp_path])).rows
    assert row.scores == pytest.approx(
        {
            "mmmu": 36.0,
            "mathvista": 25.6,
            "hallusionbench": (46.9 + 17.2 + 13.2) / 3,
            "ocrbench": 31.8,
            "ai2d": 55.5,
            "ai2d_no_mask": 60.0,
            "seed2_plus": 40.0,
        }
    )


@pytest.mark.parametrize("data_set", ["MMVet", "MyJudged"])
def test_the_judges_file_beside_a_score_is_no_data_set_of_its_own(tmp_path, data_set):
    model = tmp_path / "llava"
    write(
        model, f"{data_set}_gpt-4-turbo_score.csv", '"Category","tot","acc"\n"rec","10","20.0"\n"Overall","20","25.0"\n'
    )
    for name in (data_set, f"{data_set}_gpt-4-turbo"):
        write(model, f"{name}.xlsx", "")
    (row,) = join(read_sources([tmp_path])).rows
    assert list(row.scores.values()) == [25.0]
    assert {score.task for score in read_sources([tmp_path]).scores} == {data_set}
    shutil.rmtree(model)


def test_mme_of_lmms_eval_before_november_2024_is_read(tmp_path):
    results = {"mme": {"mme_percetion_score,none": 1510.7, "mme_cognition_score,none": 348.2}}
    data = {"results": results, "model_name": "liuhaotian/llava-v1.5-7b", "config": {"limit": None}}
    (tmp_path / "20241001_120000_results.json").write_text(json.dumps(data))
    (row,) = join(read_sources([tmp_path])).rows
    assert row.scores == {"mme": 1510.7, "mme_cognition": 348.2}


def test_rows_of_a_score_file_never_take_each_others_place(tmp_path):
    """MathVision labels its rows by subject, HR-Bench by two columns, NaturalBench by the metric's name."""
    model = tmp_path / "llava"
    subjects = "".join(f'"{name}","{tot}","{hit}","{acc}"\n' for name, tot, hit, acc in (
        ("algebra", 4, 1, 25.0), ("Overall", 10, 2, 20.0), ("topology", 6, 1, 16.7)
    ))  # fmt: skip
    write(model, "MathVision_gpt-4o_score.csv", f'"Subject","tot","hit","acc"\n{subjects}')
    cycles = '"0","all","0.5"\n"0","single","0.6"\n"Average","all","0.4"\n"Average","single","0.55"\n'
    write(model, "HRBench4K_acc.csv", f'"cycle","type","accuracy"\n{cycles}')
    write(model, "NaturalBenchDataset_acc.csv", '"Metric","Score"\n"Q_Acc","0.4"\n"G_Acc","0.11"\n')
    write(model, "ERQA_acc.csv", '"Category","Accuracy (%)","Samples"\n"Overall","38.5","400"\n"Task","9","40"\n')
    (row,) = join(read_sources([tmp_path])).rows
    expected = {"mathvision": 20.0, "hrbench_4k": 40.0, "naturalbench": 11.0, "erqa": 38.5}
    assert row.scores == pytest.approx(expected)


def test_a_folder_of_loose_files_is_read_under_the_model_that_they_name(tmp_path):
    """Files copied out of their model's folder: VLMEvalKit puts the model's name in front of each."""
    loose = tmp_path / "copied"
    loose.mkdir()
    (loose / "llava_v1.5_tiny_MMVet_gpt-4-turbo_score.csv").write_text(
        '"Category","tot","acc"\n"Overall","20","25.0"\n'
    )
    (loose / "llava_v1.5_tiny_MMVet_gpt-4-turbo.xlsx").write_text("")
    (loose / "llava_v1.5_tiny_MMStar_acc.csv").write_text('"split","Overall"\n"none","0.3"\n')
    write(tmp_path / "copied" / "other", "MMStar_acc.csv", '"split","Overall"\n"none","0.4"\n')
    rows = {row.name: row.scores for row in join(read_sources([tmp_path])).rows}
    assert rows == {"llava_v1.5_tiny": {"mmvet": 25.0, "mmstar": 30.0}, "other": {"mmstar": 40.0}}


def test_loose_files_of_two_models_are_two_rows(tmp_path):
    for model, value in (("a_7b", 0.3), ("b_7b", 0.4)):
        (tmp_path / f"{model}_MMStar_acc.csv").write_text(f'"split","Overall"\n"none","{value}"\n')
    rows = {row.name: row.scores for row in join(read_sources([tmp_path])).rows}
    assert rows == {"a_7b": {"mmstar": 30.0}, "b_7b": {"mmstar": 40.0}}
