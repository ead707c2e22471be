"""JSON Schemas of the files that mir writes, from the dataclasses they are written from and from their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mir_plugin.reports.board.config_keys import ConfigKeys
from mir_plugin.results import MirResult
from mir_plugin.robustness.results import NumberRow, Robustness
from mir_plugin.selection.comparison import Difference
from mir_plugin.selection.select import Outcome, Trend
from mir_plugin.selection.sweep import State

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def described(cls: type) -> dict[str, str]:
    """What the ``Attributes:`` section of a class's docstring says of each name; "a, b: text" is said of both."""
    section = re.search(r"Attributes:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(cls.__doc__ or ""), re.DOTALL)
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section.group(1), re.MULTILINE) if section else []
    return {name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")}


def schema_of(kind: Any) -> Schema:
    """The JSON Schema of a type as ``dataclasses.asdict`` and ``json.dumps`` write it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast("type", kind))
    if kind is Any:
        return {}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [schema_of(one) for one in arguments]}
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return {"type": "array", "items": schema_of(arguments[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    return {"type": {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}[kind]}


def _object(cls: type) -> Schema:
    hints, texts = get_type_hints(cls), described(cls)
    fields = dataclasses.fields(typing.cast("Any", cls))
    properties = {}
    for one in fields:
        properties[one.name] = schema_of(hints[one.name])
        if one.name in texts:
            properties[one.name]["description"] = texts[one.name]
    return {"type": "object", "properties": properties, "required": [one.name for one in fields]}


def _by_hand(cls: type) -> Schema:
    """The schema of what a person writes: what has a default may be left out, and other keys are mistakes."""
    hints, texts = get_type_hints(cls), described(cls)
    properties: dict[str, Schema] = {}
    required = []
    for one in dataclasses.fields(typing.cast("Any", cls)):
        properties[one.name] = {**_kind_by_hand(hints[one.name]), "description": texts[one.name]}
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            required.append(one.name)
        elif isinstance(one.default, (str, int, float)) and one.default != "":
            properties[one.name]["default"] = one.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _kind_by_hand(kind: Any) -> Schema:
    kinds = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) in (types.UnionType, typing.Union):
        return _kind_by_hand(kinds[0]) if len(kinds) == 1 else {"anyOf": list(map(_kind_by_hand, kinds))}
    if get_origin(kind) is list:
        return {"type": "array", "items": _kind_by_hand(kinds[0])}
    return _by_hand(kind) if dataclasses.is_dataclass(kind) else schema_of(kind)


def report_config() -> Schema:
    """Of the configuration of ``mir report``."""
    return _document("Report configuration", "The YAML file given to `mir report --config`.", _by_hand(ConfigKeys))


def _record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _document(title: str, what: str, schema: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, "description": what, **schema}


def _or_null(schema: Schema) -> Schema:
    description = {"description": schema["description"]} if "description" in schema else {}
    return {"anyOf": [{k: v for k, v in schema.items() if k != "description"}, {"type": "null"}], **description}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _number(description: str) -> Schema:
    return {"type": "number", "description": description}


def _whole(description: str) -> Schema:
    return {"type": "integer", "description": description}


LIST_OF_TEXT: Schema = {"type": "array", "items": {"type": "string"}}
IDENTITY = {
    "name": _text("unique among those compared"),
    "run": _text("the training it belongs to: the folder above its steps"),
    "step": _or_null(_whole("training step, from the folder's name or its trainer_state.json")),
    "checkpoint": _text("the folder or hub name that was measured"),
}


def mir_json() -> Schema:
    """Of ``mir.json``."""
    schema = _object(MirResult)
    interval = {
        "standard_error": _number("over samples"),
        "low": _number("of the interval"),
        "high": _number("of the interval"),
        "influences": _text(
            "what each sample, or each group of samples that share an image or text, contributes to the error, in "
            "their order, separated by spaces"
        ),
    }
    layer = {"layer": _whole("1..L"), **interval}
    spread = schema["properties"]["uncertainty"]
    del spread["additionalProperties"]
    spread["properties"] = {
        "method": _text("how it was computed"),
        "confidence": _number("of the intervals"),
        "n_groups": _whole("groups of samples that share no image and no text; as many as samples where none repeats"),
        **interval,
        "layers": {"type": "array", "items": _record(**layer)},
        "not_computed": _text("why there is none"),
    }
    return _document("mir.json", "One measurement of one checkpoint.", schema)


def selection_json() -> Schema:
    """Of ``mir select --json``."""
    ranked = _record(
        **IDENTITY,
        mir=_number("lower is better"),
        n_samples=_whole("of its result"),
        standard_error=_or_null(_number("over samples")),
        compared_with=_or_null(_text("name of the lowest of its run; for that one, of the lowest of all")),
        behind_best=_or_null(_object(Difference)) | {"description": "b less a, a being the one compared with"},
        compared_on=_whole("samples that both have; fewer than n_samples only with --precision"),
        tied_with_best=_or_null({"type": "boolean", "description": "not shown to be more than the tolerance behind"}),
        within_tolerance=_or_null({"type": "boolean", "description": "shown to be within the tolerance (TOST)"}),
    )
    outcome = {"enum": list(get_args(Outcome))}
    run = _record(
        run=_text("as above"),
        trend={"enum": list(get_args(Trend))},
        saturated_at=_or_null(_record(**IDENTITY)),
        best=ranked | {"description": "its lowest, compared with the lowest of all"},
        recommended=_record(**IDENTITY),
        outcome=outcome,
        sentence=_text("the recommendation if there were no other run"),
    )
    verdict = _record(
        outcome=outcome,
        recommended=_record(**IDENTITY),
        sentence=_text("the recommendation"),
        reasons=LIST_OF_TEXT,
        warnings=LIST_OF_TEXT,
        confidence=_number("for all comparisons of a set together: along a run, or across runs"),
        tolerance=_number("differences up to this do not count"),
        ranking={"type": "array", "items": ranked, "description": "best first"},
        runs={"type": "array", "items": run, "description": "in the order of their lowest MIR"},
    )
    return _document("mir select --json", "Which of the measured checkpoints to fine-tune.", verdict)


def sweep_json() -> Schema:
    """Of ``sweep.json``; ``sweep.csv`` has the same columns."""
    row = _record(
        **{name: IDENTITY[name] for name in ("name", "run", "step")},
        state={"enum": list(get_args(State)), "description": "kept: an earlier sweep had measured it"},
        mir=_or_null(_number("lower is better")),
        standard_error=_or_null(_number("over samples")),
        low=_or_null(_number("of the 95 % interval")),
        high=_or_null(_number("of the 95 % interval")),
        mir_published=_or_null(_number("see mir.json")),
        mir_published_upper=_or_null(_number("see mir.json")),
        n_samples=_or_null(_whole("image-text pairs")),
        mir_at_equal_length=_or_null(_number("see mir.json")),
        length_share=_or_null(_number("see mir.json")),
        fragile=_text("see mir.json; the sentences in one line"),
        seconds=_or_null(_number("from loading to saving")),
        indicators={
            "type": "object",
            "description": "what indicators.json beside its mir.json holds, if it is of the same samples and weights",
            "additionalProperties": {"type": "number"},
        },
        checkpoint=IDENTITY["checkpoint"],
        result=_or_null(_text("its mir.json, relative to this file")),
        error=_or_null(_text("why it failed")),
    )
    verdict = selection_json()
    document = _record(
        schema_version=_whole("of this document"),
        checkpoints={"type": "array", "items": row, "description": "in the order of training"},
        selection=_or_null({key: verdict[key] for key in ("type", "properties", "required")})
        | {"description": "the verdict, as of mir select; null without a result"},
    )
    document["properties"]["selection_impossible"] = _text("why there is no verdict, where results cannot be compared")
    return _document("sweep.json", "Every checkpoint of a sweep, and the verdict.", document)


def indicators_json() -> Schema:
    """Of ``indicators.json``."""
    numbers = {"type": "object", "additionalProperties": {"type": "number"}}
    reasons = {"type": "object", "additionalProperties": {"type": "string"}}
    document = _record(
        checkpoint=IDENTITY["checkpoint"],
        place=_text("its folder when it was measured, absolute and without links; empty for a hub name"),
        checkpoint_fingerprint=_text("hash of its files, as fingerprints.checkpoint in mir.json"),
        values=numbers | {"description": "by name, see how-to/compare-indicators.md"},
        not_computed=reasons | {"description": "name → why there is no value"},
        samples={
            "type": "object",
            "description": "where they come from, and their fingerprint",
            "additionalProperties": True,
            "properties": {"fingerprint": _text("as in mir.json")},
            "required": ["fingerprint"],
        },
        questions=_record(
            source=_text("file, or embedded digits"),
            n_questions=_whole("asked"),
            seed=_whole("of the choice of examples"),
        ),
    )
    return _document("indicators.json", "The measures that the paper compares MIR with.", document)


def robustness_json() -> Schema:
    """Of ``robustness.json``."""
    schema = _object(Robustness)
    schema["properties"]["number_rows"] = {
        "type": "array",
        "items": _object(NumberRow),
        "description": "`choices` summed up by number of samples",
    }
    return _document("robustness.json", "What moves MIR besides the checkpoint.", schema)


SCHEMAS = {
    "mir": mir_json,
    "sweep": sweep_json,
    "selection": selection_json,
    "indicators": indicators_json,
    "robustness": robustness_json,
}


WRITTEN_BY_HAND = {"report-config": report_config}


def closed(schema: Schema) -> Schema:
    """The same schema with no room for a key that it does not describe; for tests."""
    result = {key: _closed(value) for key, value in schema.items()}
    if "properties" in schema:
        result.setdefault("additionalProperties", False)
    return result


def _closed(value: Any) -> Any:
    if isinstance(value, dict):
        return closed(value)
    return [_closed(one) for one in value] if isinstance(value, list) else value
