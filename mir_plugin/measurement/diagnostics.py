"""Beside MIR: how much of it is a difference of lengths, and why a value may be fragile. Plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mir_plugin.results import LayerDistance

# Where 5 % of the tokens have half of all squared length, they are more than four times as long as the others.
HALF = 0.5
# Layers in which that is so are worth a warning from this share of the sum of distances.
SHARE_OF_DISTANCE = 0.1
# Standard error of MIR times the root of the number of samples: at most 0.26 for checkpoints without such tokens, 0.75
# for one with them. Below ten samples the error itself is too noisy.
USUAL_SPREAD, LARGE_SPREAD, FEWEST = 0.26, 0.5, 10
MOST_NAMED = 3


def length_share(layers: Sequence[LayerDistance]) -> float | None:
    """Part of the sum of distances that the difference in length of the two modalities accounts for.

    The distance of a layer is (l_v − l_t)² plus a part that is not about length (``metric.moments.length``).
    """
    terms = [layer.length_term for layer in layers]
    total = math.fsum(layer.distance for layer in layers)
    return None if None in terms or not total > 0 else math.fsum(term for term in terms if term is not None) / total


def mir_at_equal_length(layers: Sequence[LayerDistance]) -> float | None:
    """MIR after each modality is divided by its own length; None where that is unknown, or the sum is not positive."""
    distances = [layer.distance_at_equal_length for layer in layers]
    total = math.fsum(distance for distance in distances if distance is not None)
    return None if None in distances or not total > 0 else math.log10(total)


def fragilities(layers: Sequence[LayerDistance], spread: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences on what makes a value fragile.

    Args:
        spread: ``MirResult.uncertainty``.
    """
    found = [
        sentence for modality in ("vision", "text") if (sentence := _few_long_tokens(layers, modality)) is not None
    ]
    n_groups, error = spread.get("n_groups", 0), spread.get("standard_error", 0.0)
    root = math.sqrt(n_groups)
    if n_groups >= FEWEST and error * root > LARGE_SPREAD:
        found.append(
            f"The standard error is {error:.3f}, where up to {USUAL_SPREAD / root:.3f} is usual for {n_groups} samples."
        )
    return tuple(found)


def fragile_values(named: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """One sentence for each of the first fragile values, and one for the rest; of pairs of a name and its sentences."""
    fragile = [f"the MIR of {name} is fragile: {' '.join(sentences)}" for name, sentences in named if sentences]
    rest = len(fragile) - MOST_NAMED
    return fragile[:MOST_NAMED] + ([f"so are {rest} more values; their mir.json say why."] if rest > 0 else [])


def _few_long_tokens(layers: Sequence[LayerDistance], modality: str) -> str | None:
    spiking = [layer for layer in layers if (getattr(layer, f"longest_{modality}") or 0.0) > HALF]
    total = math.fsum(layer.distance for layer in layers)
    part = math.fsum(layer.distance for layer in spiking) / total if total > 0 else 0.0
    if part < SHARE_OF_DISTANCE:
        return None
    numbers = _ranges([layer.layer for layer in spiking])
    return (
        f"Few {modality} tokens are far longer than the rest: the longest 5 % have more than half of the squared "
        f"length in layer{'s' * (len(spiking) > 1)} {numbers}, which give {part:.0%} of the sum of distances. Dtype, "
        "samples and outlier handling may move this value in its first digits; `mir pictures` shows the lengths."
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as text.

    >>> _ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
