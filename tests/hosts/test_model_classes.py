"""Hosts' own model classes, on tiny checkpoints: measured as numpy measures their hidden states, or refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from hosts.fork_server import ModelClass, require_equal, results_of
from hosts.independent_mir import frechet, without_outliers
from hosts.lmms_eval_classes import CLASSES as LMMS_EVAL
from hosts.vlmeval_classes import CLASSES as VLMEVALKIT

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.full]


def measured(classes: tuple[ModelClass, ...]) -> list[ModelClass]:
    return [case for case in classes if not case.refused]


def refused(classes: tuple[ModelClass, ...]) -> list[ModelClass]:
    return [case for case in classes if case.refused]


def label(case: ModelClass) -> str:
    return case.label


@pytest.fixture(scope="module")
def lmms_eval(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return results_of("lmms_eval_classes.py", LMMS_EVAL, tmp_path_factory.mktemp("lmms-eval"))


@pytest.fixture(scope="module")
def vlmevalkit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    if importlib.util.find_spec("vlmeval") is None:
        pytest.skip("VLMEvalKit is not installed")
    return results_of("vlmeval_classes.py", VLMEVALKIT, tmp_path_factory.mktemp("vlmevalkit"))


@pytest.mark.parametrize("case", measured(LMMS_EVAL), ids=label)
def test_a_class_of_lmms_eval_gives_the_mir_of_its_hidden_states(
    case: ModelClass, lmms_eval: dict[str, dict[str, Any]]
) -> None:
    require_equal(lmms_eval[case.label])


@pytest.mark.parametrize("case", measured(VLMEVALKIT), ids=label)
def test_a_class_of_vlmevalkit_gives_the_mir_of_its_hidden_states(
    case: ModelClass, vlmevalkit: dict[str, dict[str, Any]]
) -> None:
    require_equal(vlmevalkit[case.label])


def require_refused(case: ModelClass, found: dict[str, Any]) -> None:
    assert "mir" not in found
    for part in ("MirError", case.folder, *case.refused):
        assert part in found["error"]


@pytest.mark.parametrize("case", refused(LMMS_EVAL), ids=label)
def test_a_class_of_lmms_eval_chosen_against_the_checkpoint_gives_no_number(
    case: ModelClass, lmms_eval: dict[str, dict[str, Any]]
) -> None:
    require_refused(case, lmms_eval[case.label])


@pytest.mark.parametrize("case", refused(VLMEVALKIT), ids=label)
def test_a_class_of_vlmevalkit_chosen_against_the_checkpoint_gives_no_number(
    case: ModelClass, vlmevalkit: dict[str, dict[str, Any]]
) -> None:
    require_refused(case, vlmevalkit[case.label])


def test_at_least_fifteen_classes_of_lmms_eval_are_measured(lmms_eval: dict[str, dict[str, Any]]) -> None:
    assert len({found["class"] for found in lmms_eval.values() if "class" in found}) >= 15


def test_the_independent_arithmetic_agrees_with_closed_forms() -> None:
    tokens = np.random.default_rng(0).standard_normal((50, 4))
    assert frechet(tokens, tokens) == pytest.approx(0, abs=1e-12)
    assert frechet(tokens, tokens + 2) == pytest.approx(4 * 2.0**2)
    assert frechet(tokens, 3 * tokens) == pytest.approx(
        4 * np.square(tokens.mean(0)).sum() + 4 * np.trace(np.cov(tokens, rowvar=False))
    )
    far = np.vstack([np.tile([1.0, 0.0], (40, 1)), [[100.0, 5.0]]])
    assert without_outliers(far).tolist() == [[1.0, 0.0]] * 41
