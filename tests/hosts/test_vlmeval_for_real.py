"""Against VLMEvalKit itself, where it is importable: one whole run. Tried with commit e8e78f05."""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mir_plugin.reports.read.sources import read_sources
from mir_plugin.results import MirResult
from mir_plugin.tasks.vlmevalkit.data_set import METRICS

from golden_data import require_golden

pytestmark = pytest.mark.slow

installed = pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="VLMEvalKit is not installed")
COMMAND = "from mir_plugin.tasks.vlmevalkit.command import main; main()"


def write_multiple_choice(path: Path) -> None:
    rows = []
    for index, colour in enumerate(["red", "green", "blue"]):
        picture = io.BytesIO()
        Image.new("RGB", (60, 40), colour).save(picture, "PNG")
        image = base64.b64encode(picture.getvalue()).decode()
        rows.append({"index": index, "image": image, "question": "Which?", "A": "red", "B": "green", "answer": "A"})
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t")
        table.writeheader()
        table.writerows(rows)


@installed
@pytest.mark.host
def test_one_run_measures_mir_and_scores_a_benchmark_with_the_same_model(tmp_path: Path) -> None:
    case = require_golden("llava/llava_full")
    (tmp_path / "LMUData").mkdir()
    write_multiple_choice(tmp_path / "LMUData" / "MyBench.tsv")
    environment = os.environ | {
        "LMUData": str(tmp_path / "LMUData"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "MIR_SAMPLES": "embedded",
        "MIR_N_SAMPLES": "3",
    }
    model = f"stage1={case / 'model'},vision_tower={case / 'vision_tower'},max_new_tokens=4,device=cpu"
    arguments = ["--model", model, "--data", "MIR", "MyBench", "--judge", "exact_matching"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr

    tree = tmp_path / "outputs" / "stage1"
    [run_dir] = [path for path in tree.iterdir() if path.is_dir()]
    whole = MirResult.load(run_dir / "stage1_MIR_mir.json")
    status = json.loads((run_dir / "status.json").read_text())["datasets"]
    assert status["MIR"]["metrics"]["mir"] == whole.mir
    assert set(status["MIR"]["metrics"]) == set(METRICS)
    assert status["MIR"]["primary_metric"] == "mir"
    assert "metrics" in status["MyBench"]
    assert (tree / "stage1_MIR_score.csv").resolve() == run_dir / "stage1_MIR_score.csv"

    parsed = read_sources([tmp_path / "outputs"])
    assert [measurement.mir for measurement in parsed.measurements] == [whole.mir]
    assert {score.task for score in parsed.scores} == {"MyBench"}
    assert parsed.problems == ()
