"""Parts named by a hub name: which files of the repository are fetched, and what is said when none are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from adapters.tiny_models import TINY_MODELS
from huggingface_hub.utils import filter_repo_objects

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.hub import hub_folder

pytestmark = pytest.mark.slow

BESIDE_WEIGHTS = {
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "merges.txt",
    "modeling_own.py",
    "tokenizer.model",
    "vision_tower/config.json",
}
NOT_FOR_US = {"README.md", "flax_model.msgpack", "model.onnx", "picture.png"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Puts a repository with these files on the hub; returns where snapshots of it land."""

    def put(repository: Path) -> Path:
        snapshot = tmp_path / "snapshot"

        def download(name: str, *, allow_patterns: list[str]) -> str:
            assert name == "owner/name"
            names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
            for wanted in filter_repo_objects(names, allow_patterns=allow_patterns):
                (snapshot / wanted).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(repository / wanted, snapshot / wanted)
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return snapshot

    return put


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """A hub that raises this."""

    def fail(error: Exception) -> None:
        def download(name: str, **_: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return fail


def repository(folder: Path, names: set[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        ({"model.safetensors"}, {"model.safetensors"}),
        ({"model.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        ({"mm_projector.bin"}, {"mm_projector.bin"}),
        (
            {"adapter_model.safetensors", "non_lora_trainables.bin"},
            {"adapter_model.safetensors", "non_lora_trainables.bin"},
        ),
    ],
)
def test_everything_that_loading_reads_is_fetched_and_weights_in_one_format(
    weights: set[str], fetched: set[str], tmp_path: Path, hub: Callable[[Path], Path]
) -> None:
    snapshot = hub(repository(tmp_path / "repository", BESIDE_WEIGHTS | NOT_FOR_US | weights))
    assert hub_folder("owner/name") == snapshot
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert names == BESIDE_WEIGHTS | fetched


def test_a_checkpoint_of_the_hub_is_measured_with_its_own_chat_template(
    tmp_path: Path, hub: Callable[[Path], Path]
) -> None:
    tiny = TINY_MODELS["llava_next"]()
    for part in (tiny.model, tiny.processor):
        part.save_pretrained(tmp_path / "repository")
    assert (tmp_path / "repository" / "chat_template.jinja").is_file()
    hub(tmp_path / "repository")
    assert (
        load_adapter(Path("owner/name"), LoadOptions(device="cpu")).facts["prompt_source"].startswith("chat template")
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(), r"available from the hub: OSError\)"),
        (OSError("\n"), r"available from the hub: OSError\)"),
        (OSError("disk full\nin many words"), r"available from the hub: disk full\)"),
    ],
)
def test_why_the_hub_gives_nothing_is_one_line(
    error: OSError, reason: str, failing: Callable[[Exception], None]
) -> None:
    failing(error)
    with pytest.raises(MirError, match=reason):
        CheckpointFolder.find(Path("owner/name"))
