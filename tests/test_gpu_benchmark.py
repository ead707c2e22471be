"""The script for a machine with a GPU, run whole in its tiny form; figures of a GPU are not tested here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def test_the_script_needs_only_torch_transformers_and_this_package() -> None:
    tree = ast.parse(SCRIPT.read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {
        "mir_plugin",
        "torch",
        "transformers",
    }


@pytest.mark.slow
def test_every_part_runs_with_a_tiny_model_and_is_written(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--tiny", "--samples", "2", "--out", tmp_path], check=True)
    parts = {row["part"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert not [row for row in parts.values() if "failed" in row or "not run" in row]
    differences = [value for name, value in parts["routes against the CPU"].items() if ":" in name]
    assert len(differences) == 10
    assert max(differences) < 1e-9  # the promise of the polar route
    # Weights from host memory are the same weights.
    streamed = parts["tiny: whole run, layers from host memory"]
    assert streamed["MIR"] == pytest.approx(parts["tiny: whole run"]["MIR"], rel=1e-12)
    # Weights that are read from files again are the same weights, too.
    whole, within = parts["tiny on disk: whole"], parts["tiny on disk: within --device-memory"]
    assert (whole["streamed"], within["streamed"]) == (False, True)
    assert within["MIR"] == pytest.approx(whole["MIR"], rel=1e-12)
    # Another process adds float32 products of other batches: MIR has about seven digits.
    assert parts["two processes against one"]["difference"] < 1e-6
    assert parts["tiny: whole run"]["÷ bare"] > 0
    table = (tmp_path / "gpu.md").read_text("utf-8")
    assert all(f"| {name} |" in table for name in parts)
