"""From influences to standard errors and intervals. Plain numbers only.

Samples are the unit: tokens of one sample belong together. Samples that share an image or a text tell the same thing
again, so they are one group, and their influences add up first. With the influences u_i of n groups the variance is
n / (n − 1) · Σ u_i² (infinitesimal jackknife), and the interval takes Student's quantile with n − 1 degrees of freedom.
It tells how far the value would move with other samples of the same kind and number; what the number of samples itself
does to the value (fewer samples, larger distances) is the same for all checkpoints and not part of it.

An influence is a derivative, and leaving a group out is no small step where the group has a large share h of the
tokens. Even a mean then moves by u / (1 − h), and covariances and their roots move by more: with one long text among
short ones the error came out at a third of what it is. Such groups (``heavy_groups``) are left out for real, and
(n − 1) / n · (value with all − value without) stands in place of the derivative: with that, the formula above is the
delete-a-group jackknife. ``benchmarks/coverage.py`` shows what the intervals cover.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mir_plugin.errors import MirError

METHOD = "infinitesimal jackknife over samples"
WITH_DELETIONS = "{}; delete-a-group jackknife for {} with a large share of the tokens"
# A group is heavy from this share of one modality's tokens, if that is also this many times the share of an average one
# (a factor that all groups have is in n / (n − 1) already). benchmarks/coverage.py has the errors on both sides.
HEAVY_SHARE, HEAVY_FACTOR = 0.08, 1.5
CONFIDENCE = 0.95
# Differences of MIR up to this are of no practical importance: in the paper's tables a hundredth of MIR goes with 0.03
# points of average score (docs/how-to/read-mir.md), far less than a benchmark can show.
TOLERANCE = 0.01


def uncertainty(
    distances: Sequence[float],
    influences: Sequence[Sequence[float]],
    n_samples: int | None = None,
    heavy: Collection[int] = (),
) -> dict[str, Any]:
    """Standard error and interval of MIR and of every layer distance, as stored in ``MirResult.uncertainty``.

    Args:
        distances: of layers 1..L.
        influences: for each layer, the influence of each group of samples on its distance.
        n_samples: samples in these groups; by default one each.
        heavy: groups whose influences come from leaving them out.
    """
    n_groups = len(influences[0])
    if n_groups < 2:
        what = "one sample" if (n_samples or 1) == 1 else f"{n_samples} samples of the same content"
        return {"not_computed": f"{what} {'has' if n_samples in (None, 1) else 'have'} no spread; measure at least 2"}
    total = math.fsum(distances)
    # A group is the same group in every layer, so layers add up before squaring.
    sums = [math.fsum(of_group) for of_group in zip(*influences, strict=True)]
    of_mir = [
        _influence_on_logarithm(one, total, n_groups) if index in heavy else one / (total * math.log(10))
        for index, one in enumerate(sums)
    ]
    method = METHOD
    if n_groups < (n_samples or n_groups):
        method += f", {n_samples} in {n_groups} groups of the same image or text"
    if heavy:
        method = WITH_DELETIONS.format(method, f"{len(heavy)} of {n_groups}")
    return {
        "method": method,
        "confidence": CONFIDENCE,
        "n_groups": n_groups,
        **_spread(math.log10(total), of_mir),
        "layers": [
            {"layer": number, **_spread(distance, of_layer, lowest=0.0)}
            for number, (distance, of_layer) in enumerate(zip(distances, influences, strict=True), start=1)
        ],
    }


def heavy_groups(groups: Sequence[int], *counts: Sequence[int]) -> tuple[int, ...]:
    """Groups with so large a share of the tokens of one modality that they have to be left out for real.

    Args:
        groups: of each sample, numbered from 0.
        counts: tokens of each sample, of one modality after the other.

    >>> heavy_groups([0, 1, 2, 3], [50, 50, 50, 50], [900, 40, 40, 20])
    (0,)
    """
    n_groups = len(set(groups))
    least = max(HEAVY_SHARE, HEAVY_FACTOR / n_groups)
    heavy: set[int] = set()
    for of_samples in counts:
        totals = [0] * n_groups
        for group, count in zip(groups, of_samples, strict=True):
            totals[group] += count
        heavy.update(group for group, count in enumerate(totals) if count > least * sum(totals))
    return tuple(sorted(heavy)) if n_groups > 1 else ()


def influence_of_deletion(value: float, without: float, n_groups: int) -> float:
    """What stands for a group's derivative when it was left out; the sum of squares is then the jackknife's."""
    return (n_groups - 1) / n_groups * (value - without)


def _influence_on_logarithm(influence: float, total: float, n_groups: int) -> float:
    """The same for log10 of a sum of distances, of which this influence was the part."""
    without = total - influence * n_groups / (n_groups - 1)
    return influence_of_deletion(math.log10(total), math.log10(without), n_groups) if without > 0 else math.inf


def standard_error(influences: Sequence[float]) -> float:
    """Standard error from the influences of at least two groups of samples.

    The mean of n numbers has the influences (x_i − mean) / n, and then this is the textbook's s / √n:

    >>> round(standard_error([-1 / 3, 0.0, 1 / 3]), 6), round(1 / 3**0.5, 6)
    (0.57735, 0.57735)
    """
    n = len(influences)
    return math.sqrt(n / (n - 1) * math.fsum(u * u for u in influences))


def half_width(error: float, n_groups: int, confidence: float = CONFIDENCE) -> float:
    """Half the interval that belongs to a standard error from n groups of samples."""
    from scipy.special import stdtrit

    return float(stdtrit(n_groups - 1, (1 + confidence) / 2)) * error


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
