"""lmms-eval's own model classes, on tiny checkpoints: measured as numpy measures their hidden states, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts.lmms_eval_classes import CLASSES, ModelClass, frechet, without_outliers

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.full]
WIDTH = 16  # of all tiny models
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each class gave, by its label; lmms-eval is imported once for all."""
    folder = tmp_path_factory.mktemp("classes")
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, str(TESTS / "hosts" / "lmms_eval_classes.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case.label: json.loads((folder / f"{case.label}.json").read_text()) for case in CLASSES}


@pytest.mark.parametrize("case", [case for case in CLASSES if not case.refused], ids=lambda case: case.label)
def test_a_class_is_measured_as_numpy_measures_its_hidden_states(
    case: ModelClass, measured: dict[str, dict[str, Any]]
) -> None:
    found = measured[case.label]
    assert "error" not in found, found["traceback"]
    assert found["n_vision_tokens"] > 0
    # One sample a pass, so both read the same hidden states, and compute in float64 from there. With fewer vision
    # tokens than dimensions the covariance has eigenvalues that are rounding noise, of which both take square roots.
    tolerance = 1e-9 if found["n_vision_tokens"] > WIDTH else 1e-7
    assert found["layers"] == pytest.approx(found["independent_layers"], rel=tolerance)
    assert found["mir"] == pytest.approx(found["independent_mir"], abs=tolerance)


@pytest.mark.parametrize("case", [case for case in CLASSES if case.refused], ids=lambda case: case.label)
def test_a_class_chosen_by_the_folders_name_against_the_checkpoint_gives_no_number(
    case: ModelClass, measured: dict[str, dict[str, Any]]
) -> None:
    found = measured[case.label]
    assert "mir" not in found
    for part in ("MirError", case.folder, *case.refused):
        assert part in found["error"]


def test_at_least_fifteen_classes_are_measured(measured: dict[str, dict[str, Any]]) -> None:
    assert len({found["class"] for found in measured.values() if "class" in found}) >= 15


def test_the_independent_arithmetic_agrees_with_closed_forms() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((50, 4))
    assert frechet(tokens, tokens) == pytest.approx(0, abs=1e-12)
    assert frechet(tokens, tokens + 2) == pytest.approx(4 * 2.0**2)
    assert frechet(tokens, 3 * tokens) == pytest.approx(
        4 * np.square(tokens.mean(0)).sum() + 4 * np.trace(np.cov(tokens, rowvar=False))
    )
    far = np.vstack([np.tile([1.0, 0.0], (40, 1)), [[100.0, 5.0]]])
    assert without_outliers(far).tolist() == [[1.0, 0.0]] * 41
