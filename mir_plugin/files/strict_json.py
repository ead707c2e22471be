"""JSON that was perhaps damaged or written by something else: what it says is taken only if it says it clearly."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

D = TypeVar("D")


def json_document(text: str) -> Any:
    """What a JSON document says, unless it says two things at once.

    Raises:
        ValueError: if it is no JSON, holds one key twice in an object, or is nested too deeply.
    """

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_as(cls: type[D], data: Any) -> D:
    """A dataclass from a JSON object; keys that are no fields are ignored.

    Raises:
        TypeError: for a field that is missing, of another kind, or a number that is not finite; names it.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{data!r:.60} stands where an object belongs")
    # mypy asks whether instances are hashable, not whether the class is.
    known = {name: (data[name], hint) for name, hint in _hints(cls).items() if name in data}  # type: ignore[arg-type]
    for name, (value, hint) in known.items():
        if not _fits(value, hint):
            raise TypeError(f"{name} is {value!r:.60}")
    return cls(**{name: value for name, (value, _) in known.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Evaluating annotations takes ten times as long as reading a result's layer, so it is done once for each class."""
    return get_type_hints(cls)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold: no truth value, NaN or infinity."""
    # Compared, because isfinite fails on whole numbers of hundreds of digits; false for NaN.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fits(value: Any, hint: Any) -> bool:
    if hint is float:
        return is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if hint is Any or origin is Literal:  # MirConfig says itself which words it knows
        return True
    return isinstance(value, origin or hint)
