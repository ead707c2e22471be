"""The ``mir`` command as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import mir

from mir_plugin.commands.options import bytes_of
from mir_plugin.errors import MirError
from mir_plugin.results import MirResult

from golden_data import require_golden


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
    assert set(result.fingerprints) == {"samples", "protocol", "checkpoint", "versions", "request"}


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
        (["run", "{model}", "--dataset", "x", "--embedded"], "name one source of samples"),
        (["run", "{model}", "--family", "blip9", "--embedded"], "unknown adapter 'blip9'; known: mini-gemini"),
        (["run", "{model}", "--embedded", "--base-llm", "missing_llm"], "missing_llm"),
        (["run", "{model}", "--embedded", "--device-memory", "much"], "size 'much' is not understood"),
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
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "6XB", "-1GB", "1.2.3GB"])
def test_sizes_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(MirError, match="not understood"):
        bytes_of(text)
