"""The configuration's schema and its reader agree about what is right and what is not."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import jsonschema
import pytest
from documented import DOCS

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig


@pytest.fixture(scope="module")
def validator(request: pytest.FixtureRequest) -> jsonschema.Draft202012Validator:
    spec = importlib.util.spec_from_file_location("result_schemas", DOCS / "result_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["result_schemas"] = module
    request.addfinalizer(lambda: sys.modules.pop("result_schemas"))
    spec.loader.exec_module(module)
    return jsonschema.Draft202012Validator(module.report_config())


EVERYTHING: dict[str, Any] = {
    "title": "mine",
    "models": [{"match": "a"}, {"match": ["b", "c"], "name": "B", "group": "g", "step": 3}],
    "links": [{"pretrained": "a", "finetuned": "d"}],
    "benchmarks": ["mmstar", "own"],
    "average": ["mmstar"],
    "define": [
        {
            "key": "own",
            "name": "Own",
            "unit": "points",
            "to_percent": 0.05,
            "higher_is_better": False,
            "averaged": True,
            "columns": ["Own"],
            "lmms_eval": {"task": "own", "metric": "acc", "scale": "fraction"},
            "vlmevalkit": {"task": "Own", "metric": "*|Overall"},
        }
    ],
    "formats": ["csv"],
    "notes": ["by hand"],
}


@pytest.mark.parametrize(
    "data", [{}, EVERYTHING, {"average": "paper-9"}, {"weights": {"mmstar": 2}}], ids=["none", "all", "set", "weights"]
)
def test_what_the_schema_allows_is_read(validator: jsonschema.Draft202012Validator, data: dict[str, Any]) -> None:
    validator.validate(data)
    ReportConfig.from_mapping(data)


@pytest.mark.parametrize(
    "data",
    [
        {"titel": "x"},
        {"models": [{"name": "no match"}]},
        {"models": [{"match": ["a"], "step": "x"}]},
        {"models": [{"match": ["a"], "stage": 1}]},
        {"links": [{"pretrained": "a"}]},
        {"links": {"a": "b"}},
        {"define": [{"name": "no key"}]},
        {"define": [{"key": "a", "unit": "stars"}]},
        {"define": [{"key": "a", "lmms_eval": {"task": "a"}}]},
        {"define": [{"key": "a", "higher_is_better": "yes"}]},
        {"weights": {"mmstar": "much"}},
        {"average": 7},
    ],
)
def test_what_the_schema_forbids_is_refused(validator: jsonschema.Draft202012Validator, data: dict[str, Any]) -> None:
    assert not validator.is_valid(data)
    with pytest.raises(MirError):
        ReportConfig.from_mapping(data)
