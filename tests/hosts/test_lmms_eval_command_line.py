"""The command lines a user types. Each start of lmms-eval indexes all its tasks, about half a minute."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.results import MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.tasks.lmms_eval.hooks import TASKS_DIR
from mir_plugin.tasks.lmms_eval.measurement import subset

from tolerances import HANGS, SAME_FEATURES

pytestmark = [pytest.mark.slow, pytest.mark.host]

ALIAS = [sys.executable, "-m", "mir_plugin.tasks.lmms_eval.alias"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=environment)


def arguments(checkpoint: Path, *more: str) -> list[str]:
    model_args = f"pretrained={checkpoint},device=cpu,family=huggingface"
    return ["--model", "mir_llava", "--model_args", model_args, "--gen_kwargs", "max_new_tokens=4", *more]


def written(folder: Path) -> dict[str, object]:
    [path] = folder.glob("*/*_results.json")
    results: dict[str, object] = json.loads(path.read_text())
    return results


def test_mir_needs_no_flag_and_its_result_lies_in_the_output_folder(offline: Path, tiny_llava: Path) -> None:
    done = run([*ALIAS, *arguments(tiny_llava, "--tasks", "mir,mmstar", "--limit", "4", "--output_path", "out")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "|mir                    |↓" in done.stdout
    results = written(offline / "out")
    assert results["configs"]["mir"]["metadata"]["mir_result"]["mir"] == results["results"]["mir"]["mir,none"]  # type: ignore[index]
    assert "average,none" in results["results"]["mmstar"]  # type: ignore[index]


FAILING = """
include: {digits}
task: failing
process_results: !function failing.process_results
"""


def test_a_benchmark_that_fails_later_loses_no_mir_and_the_same_command_does_not_measure_it_again(
    offline: Path, tiny_llava: Path
) -> None:
    (offline / "mine").mkdir()
    (offline / "mine" / "failing.yaml").write_text(FAILING.format(digits=TASKS_DIR / "mir_digits.yaml"))
    (offline / "mine" / "failing.py").write_text(
        "def process_results(doc, results):\n    raise ValueError('no score')\n"
    )
    given = arguments(
        tiny_llava, "--tasks", "mir,failing", "--limit", "3", "--output_path", "out", "--include_path", "mine"
    )
    failed = run([*ALIAS, *given, "--write_out"])
    assert failed.returncode == 1
    [path] = (offline / "out").glob("*/*_mir.json")
    result = MirResult.load(path)
    for text in (failed.stdout, failed.stderr):
        assert str(path.relative_to(offline)) in text
        assert f"{result.mir:.4f}" in text
    assert max(map(len, failed.stdout.splitlines())) < 3000  # --write_out shows requests, not all samples in each
    assert [m.mir for m in read_sources([offline / "out"]).measurements] == [result.mir]

    again = run([sys.executable, "-m", "lmms_eval", *given, "--tasks", "mir"])  # the host's own name of the program
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"is taken from {path.relative_to(offline)}" in again.stdout
    assert written(offline / "out")["configs"]["mir"]["metadata"]["mir_result"]["created"] == result.created  # type: ignore[index]


def test_a_missing_checkpoint_is_one_line_and_a_failure_before_anything_runs(offline: Path) -> None:
    done = run([*ALIAS, *arguments(Path("nowhere"), "--tasks", "mir,mmstar", "--output_path", "out")])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("lmms_eval: no checkpoint folder at nowhere (")
    assert "Traceback" not in done.stdout + done.stderr
    assert not (offline / "out").exists()


@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_the_value_of_one_and_their_padding_never_counts(offline: Path, tiny_llava: Path) -> None:
    given = arguments(tiny_llava, "--tasks", "mir", "--limit", "3", "--output_path", "two")
    together = run([*TORCHRUN, *ALIAS[1:], *given], ACCELERATE_USE_CPU="true")
    assert together.returncode == 0, together.stdout + together.stderr
    two = written(offline / "two")["configs"]["mir"]["metadata"]["mir_result"]  # type: ignore[index]
    adapter = load_adapter(tiny_llava, LoadOptions(device="cpu", family="huggingface"))
    one = measure(adapter, subset(embedded_samples(), range(3)), checkpoint=str(tiny_llava))
    assert two["n_samples"] == one.n_samples == 3
    assert two["engine"]["processes"] == 2
    assert two["mir"] == pytest.approx(one.mir, rel=SAME_FEATURES)
