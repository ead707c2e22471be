"""From the influences of samples to standard errors and intervals. Plain numbers only.

Samples are the unit: tokens of one sample belong together. With the influences u_i of n samples the variance is
n / (n − 1) · Σ u_i² (infinitesimal jackknife), and the interval takes Student's quantile with n − 1 degrees of freedom.
It tells how far the value would move with other samples of the same kind and number; what the number of samples itself
does to the value (fewer samples, larger distances) is the same for all checkpoints and not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mir_plugin.errors import MirError

METHOD = "infinitesimal jackknife over samples"
CONFIDENCE = 0.95
# Differences of MIR up to this are of no practical importance: in the paper's tables a hundredth of MIR goes with 0.03
# points of average score (docs/how-to/read-mir.md), far less than a benchmark can show.
TOLERANCE = 0.01


def uncertainty(distances: Sequence[float], influences: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Standard error and interval of MIR and of every layer distance, as stored in ``MirResult.uncertainty``.

    Args:
        distances: of layers 1..L.
        influences: for each layer, the derivative of its distance with respect to each sample's weight.
    """
    n_samples = len(influences[0])
    if n_samples < 2:
        return {"not_computed": "one sample has no spread; measure at least 2"}
    total = math.fsum(distances)
    # The derivative of log10 Σ_k D_k; a sample is the same sample in every layer, so layers add up before squaring.
    of_mir = [math.fsum(of_sample) / (total * math.log(10)) for of_sample in zip(*influences, strict=True)]
    return {
        "method": METHOD,
        "confidence": CONFIDENCE,
        **_spread(math.log10(total), of_mir),
        "layers": [
            {"layer": number, **_spread(distance, of_layer, lowest=0.0)}
            for number, (distance, of_layer) in enumerate(zip(distances, influences, strict=True), start=1)
        ],
    }


def standard_error(influences: Sequence[float]) -> float:
    """Standard error from the influences of at least two samples.

    The mean of n numbers has the influences (x_i − mean) / n, and then this is the textbook's s / √n:

    >>> round(standard_error([-1 / 3, 0.0, 1 / 3]), 6), round(1 / 3**0.5, 6)
    (0.57735, 0.57735)
    """
    n = len(influences)
    return math.sqrt(n / (n - 1) * math.fsum(u * u for u in influences))


def half_width(error: float, n_samples: int, confidence: float = CONFIDENCE) -> float:
    """Half the interval that belongs to a standard error from n samples."""
    from scipy.special import stdtrit

    return float(stdtrit(n_samples - 1, (1 + confidence) / 2)) * error


def influences_of(spread: Mapping[str, Any], source: str) -> list[float]:
    """The stored influences on MIR (of ``MirResult.uncertainty``) or on a layer (of one of its ``layers``).

    Raises:
        MirError: if they are damaged; names the source.
    """
    try:
        return [float(number) for number in spread["influences"].split()]
    except (KeyError, AttributeError, ValueError) as error:
        raise MirError(f"{source}: the influences of the samples cannot be read ({error}). Measure again.") from error


def has_uncertainty(spread: Mapping[str, Any]) -> bool:
    """Whether a result with this ``MirResult.uncertainty`` was measured with it."""
    return "standard_error" in spread


def _spread(value: float, influences: Sequence[float], lowest: float = -math.inf) -> dict[str, Any]:
    error = standard_error(influences)
    half = half_width(error, len(influences))
    return {
        "standard_error": error,
        "low": max(lowest, value - half),
        "high": value + half,
        # One line of text: a list would take one line of the JSON document for each sample and layer.
        "influences": " ".join(f"{influence:.5g}" for influence in influences),
    }
