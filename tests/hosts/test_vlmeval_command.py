"""`mir-vlmeval` from its arguments to the files it leaves, over a stand-in for VLMEvalKit; and without VLMEvalKit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hosts.vlmeval_stand_in import write_clone

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.tasks.options import MirOptions
from mir_plugin.tasks.vlmevalkit import command as vlmeval_command
from mir_plugin.tasks.vlmevalkit.command import own_checkpoints, run_script

from golden_data import require_golden

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that is a clone; what the command imports and hooks up is taken back afterwards."""
    write_clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("MIR_SAMPLES", "embedded")
    monkeypatch.setenv("MIR_N_SAMPLES", "3")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "vlmeval"}
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"]:
        del sys.modules[name]
    sys.modules.update(before)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mir-vlmeval", *arguments])
    vlmeval_command.main()


def test_one_command_measures_a_checkpoint_and_writes_into_the_hosts_tree(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = require_golden("llava/llava_full")
    checkpoint = f"stage1={case / 'model'},vision_tower={case / 'vision_tower'},device=cpu"
    run(monkeypatch, "--model", checkpoint, "--data", "MIR")

    adapter = load_adapter(case / "model", LoadOptions(vision_tower=case / "vision_tower", device="cpu"))
    samples = MirOptions(samples="embedded", n_samples=3).sample_set()
    direct = measure(adapter, samples, MirConfig(), checkpoint="direct")

    tree = clone / "outputs" / "stage1"
    whole = MirResult.load(tree / "stage1_MIR_mir.json")
    assert whole.layers == direct.layers
    assert (whole.host, whole.checkpoint) == ("vlmevalkit", str(case / "model"))
    [row] = pd.read_csv(tree / "stage1_MIR_score.csv").to_dict("records")
    assert row["mir"] == pytest.approx(direct.mir, rel=1e-12)
    assert (row["n_samples"], row["samples"]) == (3, whole.fingerprints["samples"])
    status = json.loads((tree / "status.json").read_text())
    assert status["primary"] == {"mir": pytest.approx(direct.mir)}


def test_an_error_that_ends_the_run_says_where_mir_was_saved(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clone / "run.py"
    path.write_text(path.read_text() + '    raise RuntimeError("benchmark")\n')
    case = require_golden("llava/llava_full")
    checkpoint = f"stage1={case / 'model'},vision_tower={case / 'vision_tower'},device=cpu"
    with pytest.raises(RuntimeError, match="benchmark"):
        run(monkeypatch, "--model", checkpoint, "--data", "MIR")
    assert str(Path("outputs", "stage1", "stage1_MIR_mir.json")) in capsys.readouterr().err


def test_an_api_model_is_refused_with_the_reason_and_the_others_are_measured(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = require_golden("llava/llava_full")
    checkpoint = f"stage1={case / 'model'},vision_tower={case / 'vision_tower'},device=cpu"
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", "GPT4o", checkpoint, "--data", "MIR")
    assert "GPT4o: MIR was not measured. GPT4V cannot be measured, because no torch module" in str(end.value)
    assert (clone / "outputs" / "stage1" / "stage1_MIR_mir.json").is_file()
    assert not (clone / "outputs" / "GPT4o" / "GPT4o_MIR_mir.json").exists()


def test_a_checkpoint_that_is_not_there_ends_with_exit_code_1(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"stage1: MIR was not measured. no checkpoint folder at nowhere"):
        run(monkeypatch, "--model", "stage1=nowhere", "--data", "MIR")


def test_samples_that_cannot_be_had_are_told_once_per_model(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIR_SAMPLES", "folders:no-images,no-texts")
    with pytest.raises(SystemExit, match=r"stage1: MIR was not measured.*no-images"):
        run(monkeypatch, "--model", "stage1=nowhere", "--data", "MIR")


def test_mir_through_an_api_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_clone(tmp_path))
    with pytest.raises(SystemExit, match="MIR cannot be measured with --api-mode, because"):
        run(monkeypatch, "--api-mode", "--model", "GPT4o", "--data", "MMStar", "MIR")


def test_a_name_of_the_hosts_own_is_not_overwritten(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="GPT4o=…: VLMEvalKit has a model of that name"):
        run(monkeypatch, "--model", "GPT4o=somewhere", "--data", "MIR")


def test_another_vlmevalkit_that_asks_differently_is_one_message(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clone / "vlmeval" / "inference.py"
    path.write_text(path.read_text().replace("out_file, verbose", "target, verbose"))
    with pytest.raises(SystemExit, match=r"does not fit this VLMEvalKit \(vlmeval.inference: .*has no out_file"):
        run(monkeypatch, "--model", "GPT4o", "--data", "MIR")


def test_without_vlmevalkit_the_command_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"VLMEvalKit is not installed.*\n.*git clone https://github.com/open-compass"):
        run(monkeypatch, "--model", "GPT4o", "--data", "MIR")


def test_an_installation_without_run_py_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "vlmeval").mkdir(parents=True)
    (tmp_path / "site" / "vlmeval" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(MirError, match=r"without its run.py"):
        run_script()


def test_the_clone_one_stands_in_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_clone(tmp_path))
    assert run_script() == tmp_path / "run.py"


def test_checkpoints_behind_model_become_names_and_nothing_else_changes() -> None:
    given = ["--data", "MIR", "a=b", "--model", "s=d,merge-lora=false,dtype=float32", "GPT4o", "--judge-args", "x=y"]
    arguments, checkpoints = own_checkpoints(given)
    assert arguments == ["--data", "MIR", "a=b", "--model", "s", "GPT4o", "--judge-args", "x=y"]
    assert checkpoints == {"s": {"pretrained": "d", "merge_lora": "false", "dtype": "float32"}}


@pytest.mark.parametrize("model", ["=d", "a/b=d", "s=", "s=d,dtype", "s=d,=x"])
def test_a_checkpoint_that_is_not_fully_named_is_refused(model: str) -> None:
    with pytest.raises(MirError, match="NAME=CHECKPOINT_DIR"):
        own_checkpoints(["--model", model])


def test_importing_the_bridge_imports_no_vlmevalkit(clone: Path) -> None:
    modules = "command, hooks, data_set, model, measurement"
    found = "print([m for m in sys.modules if m == 'vlmeval'])"
    code = f"import sys\nfrom mir_plugin.tasks.vlmevalkit import {modules}\n{found}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=clone)
    assert done.stdout.strip() == "[]"
    assert "vlmeval" in subprocess.run(  # it could have been imported from here
        [sys.executable, "-c", "import vlmeval, sys; print('vlmeval' in sys.modules and 'vlmeval')"],
        capture_output=True, text=True, check=True, cwd=clone,
    ).stdout  # fmt: skip
