"""What a wheel holds, and that it works where the repository is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: a build folder left in the repository would carry deleted modules into the wheel.
    # Through the sdist, as an index or `pip install` of an sdist would: the links must survive it.
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("mir_plugin", "model_adapters", "tasks", "reports"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_a_wheel_puts_everything_under_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mir_plugin"}
    sources = [p for folder in ("model_adapters", "tasks", "reports") for p in (ROOT / folder).rglob("*.py")]
    missing = {f"mir_plugin/{p.relative_to(ROOT)}" for p in sources} - set(names)
    assert not missing


def test_a_wheel_holds_the_data_that_the_code_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "mir_plugin", "model_adapters", "tasks", "reports"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    files = [name for name in tracked if not (ROOT / name).is_symlink()]
    expected = {name if name.startswith("mir_plugin/") else f"mir_plugin/{name}" for name in files}
    assert not expected - names


def test_an_installed_wheel_imports_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
        "import mir_plugin.model_adapters, mir_plugin.reports, mir_plugin.tasks, mir_plugin.cli\n"
        "print(mir_plugin.model_adapters.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.startswith(str(tmp_path)), done.stdout + done.stderr


def test_the_editable_install_finds_the_folders_of_the_repository() -> None:
    import mir_plugin.model_adapters

    file = mir_plugin.model_adapters.__file__
    assert file is not None
    assert Path(file).resolve().parent == ROOT / "model_adapters"
