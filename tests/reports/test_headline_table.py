"""The declared headlines against the hosts' own task files and sets."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml

from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.benchmarks import AVERAGE_SETS, LMMS_EVAL, VLMEVALKIT, find_headlines
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.sources import read_sources

OURS = {"mir_digits"}
# Spelt so in results files before November 2024.
PAST = {"mme_percetion_score"}
# Image tasks that people report. What is missing in the table is named by the first test.
IMAGE_TASKS = [
    "ai2d",
    "ai2d_no_mask",
    "blink",
    "charxiv_val_descriptive",
    "charxiv_val_reasoning",
    "chartqa",
    "cmmmu_val",
    "coco2017_cap_val",
    "countbenchqa",
    "cv_bench",
    "docvqa_val",
    "flickr30k_test",
    "gqa",
    "hallusion_bench_image",
    "infovqa_val",
    "llava_in_the_wild",
    "mathvision_test",
    "mathvision_testmini",
    "mathvista_testmini_cot",
    "mathvista_testmini_format",
    "mathvista_testmini_solution",
    "mmbench_cn_dev",
    "mmbench_en_dev",
    "mme",
    "mmerealworld",
    "mmmu_pro_standard",
    "mmmu_pro_vision",
    "mmmu_val",
    "mmstar",
    "mmt_val",
    "mmvet",
    "mmvp",
    "muirbench",
    "nocaps_val",
    "ocrbench",
    "ocrbench_v2",
    "ok_vqa_val2014",
    "pope",
    "realworldqa",
    "scienceqa",
    "scienceqa_img",
    "seedbench",
    "seedbench_2",
    "seedbench_2_plus",
    "textcaps_val",
    "textvqa_val",
    "vizwiz_vqa_val",
    "vlmsareblind",
    "vqav2_val",
    "vstar_bench",
]
OPENVLM = [
    "MMBench_DEV_EN_V11",
    "MMStar",
    "MMMU_DEV_VAL",
    "MathVista_MINI",
    "HallusionBench",
    "AI2D_TEST",
    "OCRBench",
    "MMVet",
]


def test_no_reported_task_lacks_a_headline():
    missing = [task for task in IMAGE_TASKS if not find_headlines(LMMS_EVAL, task, BENCHMARKS)]
    missing += [data_set for data_set in OPENVLM if not find_headlines(VLMEVALKIT, data_set, BENCHMARKS)]
    assert not missing


def test_openvlms_eight_can_be_filled_by_vlmevalkit():
    fed = {benchmark.key for name in OPENVLM for benchmark, _ in find_headlines(VLMEVALKIT, name, BENCHMARKS)}
    assert fed == set(AVERAGE_SETS["openvlm-8"].keys)


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: node.value)


def read_task(path: Path) -> dict:
    task = yaml.load(path.read_text(), Loader=Loader) or {}
    return {**read_task(path.parent / task["include"]), **task} if "include" in task else task


@pytest.fixture(scope="module")
def metrics_of_tasks() -> dict[str, set[str]]:
    """Task or group of lmms-eval → its metrics, as its files say."""
    wanted = {task for one in BENCHMARKS for line in one.headlines if line.host == LMMS_EVAL for task in line.tasks}
    folder = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.yaml"):
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
