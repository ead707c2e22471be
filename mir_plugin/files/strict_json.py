"""JSON that may be damaged or written by another program, read strictly."""

from __future__ import annotations

import functools
import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

D = TypeVar("D")


def json_document(text: str) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: if it is not JSON, an object repeats a key, or it is nested too deeply.
    """

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
        return found

    try:
        return json.loads(text, object_pairs_hook=without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_as(cls: type[D], data: Any) -> D:
    """A dataclass from a JSON object, nested dataclasses and tuples included; keys that are no fields are ignored.

    Raises:
        TypeError: for a field that is missing or of another type; names it.
        ValueError: for NaN or infinity anywhere.
    """
    from pydantic import ValidationError

    if not isinstance(data, dict):
        raise TypeError(f"expected an object, got {data!r:.60}")
    try:
        value: D = _reader(cls).validate_json(json.dumps(data, allow_nan=False), strict=True)  # type: ignore[arg-type]
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise TypeError(f"{field}: {first['msg']}, got {first['input']!r:.60}") from error


@functools.cache
def _reader(cls: type[Any]) -> TypeAdapter[Any]:
    """Building one takes a hundred times as long as reading a layer of a result."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold; booleans are not numbers."""
    # Compared, because isfinite fails on whole numbers of hundreds of digits; false for NaN.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
