"""A result answers a request only while every file that moved it is as it was."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from opened_files import opened_below
from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import files_that_count
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.model_adapters.huggingface.identity import code_elsewhere
from mir_plugin.model_adapters.weights import hub
from mir_plugin.results import MirConfig
from mir_plugin.samples.embedded import embedded_samples, micro_checkpoints

from golden_data import require_golden

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=["huggingface", "llava/llava_projector", "sharegpt4v/share4v_pretrain", "mini_gemini/mgm_projector"]
)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose towers and base LLM are named by its config alone, in copies that a test may change."""
    monkeypatch.chdir(tmp_path)
    if request.param == "huggingface":
        shutil.copytree(micro_checkpoints()[0], "model")
    else:
        shutil.copytree(require_golden(request.param), ".", dirs_exist_ok=True)
    return Path("model")


def measurement_of(checkpoint: Path) -> Measurement:
    options = LoadOptions(device="cpu")
    return Measurement(Checkpoint(checkpoint, options), embedded_samples(2), MirConfig(), Path("out"))


def source_folders(result_facts: Any) -> list[Path]:
    return [Path(folder) for folder in result_facts["source_folders"]]


def test_every_file_that_a_load_opens_counts(checkpoint: Path) -> None:
    with opened_below(Path.cwd()) as opened:
        adapter = measurement_of(checkpoint).load()
    counted = {path for folder in source_folders(adapter.facts) for path in files_that_count(folder)}
    assert {path.suffix for path in opened} & {".safetensors", ".bin"}, "weights were not seen"
    assert opened <= counted


def test_a_change_of_any_file_in_place_is_noticed(checkpoint: Path) -> None:
    result = measurement_of(checkpoint).run()
    assert measurement_of(checkpoint).earlier() == result
    paths = {path for folder in source_folders(result.facts) for path in files_that_count(folder)}
    assert len(paths) > 5
    for path in sorted(paths):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b" " + content[len(content) // 2 :])
        assert measurement_of(checkpoint).earlier() is None, path
        path.write_bytes(content)
        assert measurement_of(checkpoint).earlier() == result, path


def test_a_checkpoint_overwritten_while_it_is_measured_gives_no_result(checkpoint: Path) -> None:
    measurement = measurement_of(checkpoint)
    adapter = measurement.load()
    weights = next(path for path in sorted(checkpoint.iterdir()) if path.suffix in {".safetensors", ".bin"})

    def overwrite(_: object) -> None:
        weights.write_bytes(weights.read_bytes() + b"\0")

    with pytest.raises(MirError, match="model changed while it was measured"):
        measurement.measure(adapter, on_layer=overwrite)
    assert not measurement.result_path.exists()
    assert not list(Path("out").glob("*.jsonl"))


def test_another_revision_of_a_hub_checkpoint_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = []
    for name in ("first", "second"):
        revisions.append(Path(shutil.copytree(micro_checkpoints()[0], tmp_path / "snapshots" / name)))
    (revisions[1] / "chat_template.jinja").write_text("USER: {{ messages[0].content[0].type }}")
    current = iter([revisions[0], revisions[0], revisions[1]])
    monkeypatch.setattr(hub, "hub_folder", lambda _: next(current))

    def measurement() -> Measurement:
        checkpoint = Checkpoint(Path("owner/model"), LoadOptions(device="cpu"))
        return Measurement(checkpoint, embedded_samples(2), MirConfig(), tmp_path / "out")

    result = measurement().run()
    assert (result.checkpoint, result.place) == ("owner/model", "")
    assert measurement().earlier() == result
    assert measurement().earlier() is None


def test_code_of_another_repository_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"modeling_{name}.py").write_text("")
    classes = []
    for name in ("here", "elsewhere"):
        module = ModuleType(f"transformers_modules.{name}")
        module.__file__ = str(tmp_path / name / f"modeling_{name}.py")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        classes.append(type(name, (nn.Module,), {"__module__": module.__name__}))
    model = nn.Sequential(*(one() for one in classes))
    assert code_elsewhere(tmp_path / "here", model, SimpleNamespace(image_processor=None)) == [tmp_path / "elsewhere"]
