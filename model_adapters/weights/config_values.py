"""Values of a config that no weight's shape contradicts, and that ruin every hidden state when they are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_LARGEST_NORM_EPSILON = 0.01  # it keeps a division from being one by zero; larger, it changes every hidden state


def is_norm_epsilon(value: object) -> bool:
    """Whether the value can be what a norm adds to a variance.

    >>> is_norm_epsilon(1e-05), is_norm_epsilon(1), is_norm_epsilon("1e-05")
    (True, False, False)
    """
    return isinstance(value, float) and 0 < value < _LARGEST_NORM_EPSILON


def impossible_rotation(config: Mapping[str, Any]) -> tuple[str, object] | None:
    """The first value, by name, with which positions cannot be rotated: NaN, infinite, or not above zero.

    >>> impossible_rotation({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": -2.0}})
    ('rope_scaling.factor', -2.0)
    """
    for name, value in _rotation(config):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            return name, value
    return None


def _rotation(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    if config.get("rope_theta") is not None:
        yield "rope_theta", config["rope_theta"]
    for outer in ("rope_scaling", "rope_parameters"):
        inside = config.get(outer)
        if isinstance(inside, Mapping):
            given = (name for name in ("rope_theta", "factor") if inside.get(name) is not None)
            yield from ((f"{outer}.{name}", inside[name]) for name in given)
