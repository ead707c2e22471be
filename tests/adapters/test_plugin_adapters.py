"""A checkpoint family that another package adds: by entry point, or named as module:ATTRIBUTE."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import (
    LoadOptions,
    adapter_spec,
    known_adapters,
    open_checkpoint,
)

pytestmark = pytest.mark.slow

MODULE = """
from mir_plugin.model_adapters import AdapterSpec
FAMILY = AdapterSpec({name!r}, "a family of one", "owls:load", "owls:recognises", "owls:inspect")
SOMETHING_ELSE = 3
def recognises(folder): return (folder.path / "owl").exists()
def inspect(folder, options): return {{"feathers": "many"}}
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Transformers would recognise it too, so the plugin has to be asked first."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}')
    (folder / "owl").touch()
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site folder with the plugin's module and the metadata of an installed package."""
    metadata = tmp_path / "owls-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: owls\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mir_plugin.adapters]\nowl = owls:FAMILY\n")
    (tmp_path / "owls.py").write_text(MODULE.format(name="owl"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "owls", raising=False)
    known_adapters.cache_clear()
    yield tmp_path
    known_adapters.cache_clear()


def test_an_installed_family_is_known_recognised_and_asked_first(installed: Path, checkpoint: Path) -> None:
    assert [spec.name for spec in known_adapters()][:2] == ["owl", "mini-gemini"]
    assert adapter_spec("owl") is open_checkpoint(checkpoint).spec
    assert open_checkpoint(checkpoint).inspect() == {"feathers": "many"}


def test_an_installed_family_must_not_take_a_name_in_use(installed: Path) -> None:
    (installed / "owls.py").write_text(MODULE.format(name="hf"))
    with pytest.raises(MirError, match="the adapter 'owl' of owls is called 'hf', which is in use"):
        known_adapters()


def test_an_installed_family_that_is_broken_is_named_not_passed_over(installed: Path) -> None:
    (installed / "owls.py").write_text("import feathers")
    with pytest.raises(MirError, match="the adapter 'owl' of owls cannot be imported: No module named 'feathers'"):
        known_adapters()


def test_a_family_of_ones_own_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    (tmp_path / "owls.py").write_text(MODULE.format(name="owl"))
    monkeypatch.syspath_prepend(tmp_path)
    assert open_checkpoint(checkpoint, LoadOptions(family="owls:FAMILY")).spec.name == "owl"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere_at_all:FAMILY", "cannot be imported: No module named 'nowhere_at_all'.*PYTHONPATH"),
        ("owls:NOTHING", "cannot be imported: module 'owls' has no attribute 'NOTHING'"),
        ("owls:SOMETHING_ELSE", "is 'int'; expected a mir_plugin.model_adapters.AdapterSpec"),
    ],
)
def test_a_place_without_a_family_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    (tmp_path / "owls.py").write_text(MODULE.format(name="owl"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MirError, match=message):
        adapter_spec(place)
