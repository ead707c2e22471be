"""Values of a config that no weight's shape contradicts, and that ruin every hidden state when they are wrong."""

from __future__ import annotations

_LARGEST_NORM_EPSILON = 0.01  # it keeps a division from being one by zero; larger, it changes every hidden state


def is_norm_epsilon(value: object) -> bool:
    """Whether the value can be what a norm adds to a variance.

    >>> is_norm_epsilon(1e-05), is_norm_epsilon(1), is_norm_epsilon("1e-05")
    (True, False, False)
    """
    return isinstance(value, float) and 0 < value < _LARGEST_NORM_EPSILON
