"""The ``mir`` command as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import mir

from mir_plugin import cli
from mir_plugin.cli import app
from mir_plugin.commands.terminal import print_comparison, print_result
from mir_plugin.errors import MirError
from mir_plugin.indicators.file import answered
from mir_plugin.indicators.in_context import about_questions
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.options import SampleOptions, load_options, parse_bool, parse_size
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.results import MirResult
from mir_plugin.samples.embedded import micro_checkpoints
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.comparison import compare_results

from golden_data import require_golden
from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow


@pytest.fixture
def projector_case() -> Path:
    return require_golden("llava/llava_projector")


def test_run_prints_a_table_and_writes_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, projector_case: Path
) -> None:
    checkpoint, samples = projector_case / "model" / "checkpoint-20", projector_case / "samples"
    code = mir(
        monkeypatch, "run", checkpoint, "--base-llm", projector_case / "base_llm",
        "--images", samples, "--texts", samples, "--n-samples", 2, "--out", tmp_path, "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    result = MirResult.load(tmp_path / "mir.json")
    assert f"MIR            {result.mir:.4f}" in printed
    assert [layer.layer for layer in result.layers] == [1, 2, 3, 4]
    assert result.n_samples == 2
    assert set(result.fingerprints) == {
        "samples", "protocol", "checkpoint", "versions", "inputs", "request", "loading",
    }  # fmt: skip


def test_json_prints_the_result_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, projector_case: Path
) -> None:
    code = mir(
        monkeypatch, "run", projector_case / "model", "--base-llm", projector_case / "base_llm",
        "--embedded", "--n-samples", 1, "--out", tmp_path, "--json", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "mir.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere"], "no checkpoint folder at nowhere"),
        (["run", "{model}", "--images", "photos"], "--images and --texts go together"),
        (["run", "{model}", "--dataset", "x", "--embedded"], "--dataset, or --embedded"),
        (["run", "{model}", "--family", "blip9", "--embedded"], "unknown adapter 'blip9'; known: mini-gemini"),
        (["run", "{model}", "--embedded", "--base-llm", "missing_llm"], "missing_llm"),
        (["run", "{model}", "--embedded", "--device-memory", "much"], "'much'"),
        (["run", "{model}", "--embedded", "--n-samples", "101"], "101"),
        (["run", "{model}", "--embedded", "--device", "potato"], "device is 'potato'"),
    ],
)
def test_a_mistake_is_one_message_and_a_failure_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    projector_case: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = mir(monkeypatch, *(a.format(model=projector_case / "model") for a in arguments))
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert captured.err.startswith("mir: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_adapters_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mir(monkeypatch, "adapters") == 0
    assert "llava-1.5" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "size"), [("6GB", 6 * 10**9), ("512MiB", 2**29), ("1e9", 10**9), ("2 k", 2000)])
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "6XB", "-1GB", "1.2.3GB", "0"])
def test_sizes_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(MirError, match="6GB"):
        parse_size(text)


@pytest.mark.parametrize(("value", "means"), [("true", True), ("False", False), ("1", True), (0, False), (True, True)])
def test_truths_are_read_as_words_and_digits(value: object, means: bool) -> None:
    assert parse_bool(value, "merge_lora") is means


@pytest.mark.parametrize("value", ["", "yes", "2", None, [True]])
def test_truths_that_say_nothing_are_refused_by_name(value: object) -> None:
    with pytest.raises(MirError, match=r"merge_lora is .*; expected true or false"):
        parse_bool(value, "merge_lora")


def test_loading_options_of_a_host_tool_are_read_from_texts() -> None:
    expected = LoadOptions(base_llm=Path("vicuna"), dtype="float16", device_memory=10**9, merge_lora=False)
    texts = {"dtype": "float16", "base_llm": "vicuna", "device_memory": "1GB", "merge_lora": "false"}
    assert load_options(texts) == expected
    assert load_options({**texts, "vision_tower": None, "pretrained": "not a loading option"}) == expected


MEASURING = ("run", "sweep", "indicators", "pictures", "robustness")


class Loaded(Exception):
    """Ends a command when it comes to load its checkpoint."""


@pytest.mark.parametrize("command", MEASURING)
def test_under_a_launcher_every_command_takes_the_accelerator_of_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    loads: list[str] = []

    def load(checkpoint: Checkpoint, *_: Any) -> None:
        loads.append(checkpoint.options.device)
        raise Loaded

    monkeypatch.setattr(Checkpoint, "load", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", lambda _: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.chdir(tmp_path)
    samples = [] if command == "robustness" else ["--embedded"]
    more = ["--no-report"] if command == "sweep" else []
    try:
        mir(monkeypatch, command, micro_checkpoints()[0], *samples, "--n-samples", 2, *more)
    except Loaded:
        assert command != "sweep"  # which notes that the checkpoint failed
    assert loads == ["cuda:3"]


@pytest.mark.parametrize("command", MEASURING)
def test_memory_that_does_not_suffice_is_one_message_with_options_that_the_command_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    def load(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. 1 GiB is free. Try this.")

    monkeypatch.setattr(Checkpoint, "load", load)
    monkeypatch.chdir(tmp_path)
    samples = [] if command == "robustness" else ["--embedded"]
    assert mir(monkeypatch, command, micro_checkpoints()[0], *samples, "--n-samples", 2) == 1
    printed = capsys.readouterr()
    told = printed.err + printed.out
    assert "Tried to allocate 2.00 GiB. 1 GiB is free." in told
    for option in ("--batch-size", "--dtype", "--n-samples"):
        assert option in told
    assert ("--device-memory" in told) == (command != "indicators")
    assert "Traceback" not in told


def test_no_line_of_the_help_is_cut_at_80_columns() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "mir_plugin.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_every_command_takes_the_batch_size_that_its_help_says() -> None:
    defaults = {
        command.callback.__name__: inspect.signature(command.callback).parameters["batch_size"].default
        for command in app.registered_commands
        if command.callback and "batch_size" in inspect.signature(command.callback).parameters
    }
    assert defaults == dict.fromkeys(MEASURING)


def test_steps_of_two_runs_are_measured_into_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_: ToyAdapter())
    monkeypatch.setattr(Checkpoint, "spec", None)
    monkeypatch.setattr(SampleOptions, "choose", lambda _: SampleSet(tuple(toy_samples(3))))
    monkeypatch.chdir(tmp_path)
    for name in ("a/step-5", "b/step-5", "a/final", "b/final"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.json").write_text("{}")
    for name in ("a/step-5", "b/step-5", "a/final"):
        assert mir(monkeypatch, "run", name) == 0
    found = {path.parent.name: MirResult.load(path).checkpoint for path in Path("mir-out").glob("*/mir.json")}
    assert found == {"a_step-5": "a/step-5", "b_step-5": "b/step-5", "final": "a/final"}
    capsys.readouterr()
    assert mir(monkeypatch, "run", "b/final") == 1
    message = capsys.readouterr().err
    assert all(path in message for path in ("mir-out/final/mir.json", "a/final", "b/final", "--out", "--force"))
    assert MirResult.load(Path("mir-out/final")).checkpoint == "a/final"


def test_indicators_of_another_checkpoint_are_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "indicators.json"
    path.write_text('{"checkpoint": "runs/a/final"}')
    checkpoint = micro_checkpoints()[0]
    assert mir(monkeypatch, "indicators", checkpoint, "--embedded", "--out", tmp_path) == 1
    message = capsys.readouterr().err
    assert "indicators.json" in message and "runs/a/final" in message and str(checkpoint) in message
    assert path.read_text() == '{"checkpoint": "runs/a/final"}'


@pytest.mark.parametrize(
    ("held", "n_asked", "is_answered"),
    [
        (None, 0, False),
        (0, 0, True),
        (0, 4, False),  # measured with --n-questions 0, and now they are asked for
        (4, 0, True),
        (4, 4, True),
        (4, 3, False),
    ],
)
def test_recorded_indicators_answer_the_questions_that_were_asked(
    held: int | None, n_asked: int, is_answered: bool
) -> None:
    recorded = {} if held is None else {"questions": about_questions([None] * held)}  # type: ignore[list-item]
    assert answered(recorded, about_questions([None] * n_asked)) is is_answered  # type: ignore[list-item]


def test_indicators_with_questions_of_ones_own_stand() -> None:
    asked = about_questions([None] * 4)  # type: ignore[list-item]
    assert answered({"questions": {"source": "mmbench.tsv", "n_questions": 200, "seed": 0}}, asked)
    assert not answered({"questions": {"source": "mmbench.tsv", "n_questions": 0, "seed": 0}}, asked)
    assert not answered({"values": {}}, asked)


ODD = "runs/[a b]/x[/b]"


def test_names_that_look_like_markup_are_printed_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mir_plugin.commands.indicators import _print
    from mir_plugin.indicators.indicators import DESCRIPTIONS, Indicators

    monkeypatch.setenv("COLUMNS", "200")
    result = measure(ToyAdapter(), SampleSet(tuple(toy_samples(3))), checkpoint=ODD)
    print_result(result, Path(ODD) / "mir.json")
    shown = capsys.readouterr().out
    assert f"MIR of {ODD}" in shown
    assert f"saved to {ODD}/mir.json" in shown
    print_comparison(compare_results(result, result))
    assert f"A  {ODD}\nB  {ODD}" in capsys.readouterr().out
    _print(Indicators({}, dict.fromkeys(DESCRIPTIONS, ODD)), Path(ODD), Path(ODD) / "indicators.json")
    shown = capsys.readouterr().out
    assert f"Indicators of {ODD}" in shown
    assert f"not computed: {ODD}" in shown
    assert f"saved to {ODD}/indicators.json" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_made_an_error_of_its_own_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def draw() -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError("Invalid bounding box") from None  # matplotlib's renderer

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(cli, "app", draw)
    try:
        assert mir(monkeypatch, "report") == 128 + number
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert capsys.readouterr().err == ""
