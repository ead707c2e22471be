"""``mir inspect``: what is recognised without reading a weight."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mir

from mir_plugin.commands.inspect import measuring_lines
from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.samples.embedded import micro_checkpoints

from golden_data import require_golden

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "family", "stated"),
    [
        ("llava/llava_full", "llava-1.5", {"kind": "full checkpoint", "base LLM": "inside the checkpoint"}),
        ("llava/llava_projector", "llava-1.5", {"kind": "projector only", "tuned parts": "tune_mm_mlp_adapter"}),
        ("llava/llava_lora", "llava-1.5", {"kind": "LoRA", "LoRA": "rank 6 on 28 modules"}),
        ("llava/llava_moca", "llava-1.5", {"MoCa": "in every layer"}),
        ("llava/llava_qformer", "llava-1.5", {"projector": "qformer"}),
        ("sharegpt4v/share4v_full", "sharegpt4v", {"tuned parts": "tune_vision_tower"}),
        ("mini_gemini/mgm_full", "mini-gemini", {"picture": "768 pixels; low-resolution views 1 x 1"}),
    ],
)
def test_a_checkpoint_is_recognised_with_its_parts(case: str, family: str, stated: dict[str, str]) -> None:
    checkpoint = open_checkpoint(require_golden(case) / "model")
    assert checkpoint.spec.name == family
    assert stated.items() <= checkpoint.inspect().items()


def test_the_folders_name_has_no_say(tmp_path: Path) -> None:
    copy = tmp_path / "mgm-sharegpt4v-qwen"
    shutil.copytree(require_golden("llava/llava_full"), copy, ignore=shutil.ignore_patterns("samples", "expected*"))
    assert open_checkpoint(copy / "model").spec.name == "llava-1.5"


def test_a_hugging_face_checkpoint_is_described_by_its_config() -> None:
    checkpoint = open_checkpoint(micro_checkpoints()[0])
    config = json.loads((micro_checkpoints()[0] / "config.json").read_text())
    assert checkpoint.spec.name == "huggingface"
    assert checkpoint.inspect()["layers"].startswith(f"{config['text_config']['num_hidden_layers']} of width")


def test_a_missing_part_is_named_with_its_family_and_remedy(tmp_path: Path) -> None:
    case = require_golden("llava/llava_projector")
    shutil.copytree(case / "model", tmp_path / "lonely" / "deep" / "model")
    with pytest.raises(MirError, match=r"is a llava-1\.5 checkpoint, but cannot be loaded yet.*--base-llm"):
        open_checkpoint(tmp_path / "lonely" / "deep" / "model").inspect()


def test_inspecting_an_original_checkpoint_reads_its_config_once_and_tells_its_parts_without_torch() -> None:
    cases = [
        "llava/llava_full",  # safetensors
        "llava/llava_linear",  # pickles in shards
        "llava/llava_lora",
        "llava/llava_qformer",
        "sharegpt4v/share4v_full",
        "mini_gemini/mgm_full",
    ]
    code = """
import os, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
from mir_plugin.cli import app
from mir_plugin.model_adapters import open_checkpoint
for case in sys.argv[1:]:
    open_checkpoint(Path(case, "model")).inspect()
print(*({"torch", "transformers"} & {*sys.modules}), file=sys.stderr)
for case in sys.argv[1:]:
    os.chdir(case)
    app(["inspect", "model"], standalone_mode=False)
    print(case, opened.count("model/config.json"), file=sys.stderr)
    opened.clear()
"""
    folders = [str(require_golden(case)) for case in cases]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["", *(f"{folder} 1" for folder in folders)], done.stdout + done.stderr


def test_an_overridden_tower_is_the_one_described() -> None:
    case = require_golden("sharegpt4v/share4v_full")
    checkpoint = open_checkpoint(case / "model", LoadOptions(vision_tower=case / "vision_tower"))
    assert checkpoint.inspect()["vision tower"].endswith("(named by --vision-tower)")


def test_a_path_that_is_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(MirError, match=r"no checkpoint folder at .*nothing-here"):
        CheckpointFolder.find(tmp_path / "nothing-here")
    with pytest.raises(MirError, match=r"holds no config\.json\.$"):
        CheckpointFolder.find(tmp_path)


def test_the_folder_of_a_run_names_a_checkpoint_inside_it_and_the_command_for_all(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "config.json").write_text("{}")
    (tmp_path / "logs").mkdir()
    with pytest.raises(MirError, match=r"holds no config\.json\. Its folder checkpoint-2 .*`mir sweep`"):
        CheckpointFolder.find(tmp_path)


def test_a_path_is_shown_letter_by_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    name = "[a b] of [/b] and :cat:"
    shutil.copytree(micro_checkpoints()[0], tmp_path / name)
    assert mir(monkeypatch, "inspect", name) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].removeprefix("checkpoint").strip() == name
    assert f"mir run {shlex.quote(name)}\n" in shown


def test_the_printed_command_is_understood_by_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = shutil.copytree(require_golden("llava/llava_lora"), tmp_path / "a case")
    assert mir(monkeypatch, "inspect", case / "model", "--no-merge-lora", "--base-llm", case / "base_llm") == 0
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if line.startswith("mir run ")]
    assert shlex.split(line) == ["mir", "run", f"{case}/model", "--base-llm", f"{case}/base_llm", "--no-merge-lora"]
    _, *arguments = shlex.split(line)
    pair = ("--images", case / "samples", "--texts", case / "samples", "--out", tmp_path / "out", "--device", "cpu")
    assert mir(monkeypatch, *arguments, *pair, "--n-samples", 2) == 0


def test_options_of_a_host_tool_are_one_word_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(require_golden("llava/llava_projector") / "model", tmp_path / "my llava")
    monkeypatch.chdir(tmp_path)
    options = LoadOptions(base_llm=Path("a b"), merge_lora=False)
    _, line = measuring_lines(open_checkpoint(Path("my llava"), options))
    assert line.startswith(
        "lmms_eval --model mir_llava --model_args 'pretrained=my llava,base_llm=a b,merge_lora=False'"
    )
