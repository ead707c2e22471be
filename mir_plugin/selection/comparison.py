"""Two results side by side: paired where they share their samples, with the uncertainty of the difference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.metric.uncertainty import (
    CONFIDENCE,
    half_width,
    has_uncertainty,
    influences_of,
    standard_error,
)
from mir_plugin.results import MirResult


@dataclass(frozen=True)
class Difference:
    """B − A of one quantity; error and interval are None where a result was measured without its uncertainty."""

    a: float
    b: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval of the difference excludes 0; None if there is no interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints compared.

    Attributes:
        a, b: the checkpoints' names.
        paired: whether both were measured on the same samples.
        differing: what of samples and protocol is not the same.
        told: sentences on what reached the models differently because the checkpoints differ.
        mir: the difference of MIR.
        layers: the differences of the layer distances; empty when the checkpoints have different numbers of layers.
    """

    a: str
    b: str
    paired: bool
    differing: tuple[str, ...]
    told: tuple[str, ...]
    mir: Difference
    layers: tuple[Difference, ...]

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.mir.distinguishable is None:
            return "whether they are distinguishable is unknown: measured without uncertainty (--no-uncertainty)."
        interval = f"{CONFIDENCE:.0%} interval of the difference: {self.mir.low:+.4f} … {self.mir.high:+.4f}"
        if not self.mir.distinguishable:
            return f"not distinguishable on these samples ({interval}, which includes 0)."
        lower = "B" if self.mir.difference < 0 else "A"
        return f"distinguishable: {lower} has the lower, better MIR ({interval})."

    def as_json(self) -> dict[str, Any]:
        """All fields, with the verdict and whether the two are distinguishable, as plain JSON values."""
        return {
            **dataclasses.asdict(self),
            "distinguishable": self.mir.distinguishable,
            "confidence": CONFIDENCE,
            "verdict": self.verdict,
        }


def compare_results(a: MirResult, b: MirResult, *, anyway: bool = False) -> Comparison:
    """Compare two measurements; the difference is B − A.

    On the same samples the influences are subtracted sample by sample before they are squared. On different samples
    the two are taken as independent.

    Args:
        anyway: compare although samples or protocol differ.
    Raises:
        MirError: if samples or protocol differ and ``anyway`` is not set; says in what.
    """
    differing = tuple(protocol_differences(a, b))
    same_name = a.checkpoint == b.checkpoint  # of two projects, or measured twice
    one, other = (result.place or result.checkpoint if same_name else result.checkpoint for result in (a, b))
    if differing and not anyway:
        raise MirError(
            f"{one} (A) and {other} (B) are not comparable: they differ in {'; '.join(differing)}. "
            "Measure both with the same samples and options, or add --anyway."
        )
    paired = _share_samples(a, b)
    layers: list[Difference] = []
    if len(a.layers) == len(b.layers):
        spreads = [result.uncertainty.get("layers") or [{}] * len(result.layers) for result in (a, b)]
        layers = [
            _difference((ours.distance, our_spread), (theirs.distance, their_spread), a, b, paired)
            for ours, theirs, our_spread, their_spread in zip(a.layers, b.layers, *spreads, strict=True)
        ]
    return Comparison(
        a=one,
        b=other,
        paired=paired,
        differing=differing,
        told=tuple(allowed_differences(a, b)),
        mir=mir_difference(a, b),
        layers=tuple(layers),
    )


def mir_difference(a: MirResult, b: MirResult, confidence: float = CONFIDENCE) -> Difference:
    """The difference of MIR, B − A, paired over the samples where they are the same."""
    return _difference((a.mir, a.uncertainty), (b.mir, b.uncertainty), a, b, _share_samples(a, b), confidence)


def _share_samples(a: MirResult, b: MirResult) -> bool:
    return a.fingerprints.get("samples") == b.fingerprints.get("samples") and a.n_samples == b.n_samples


def _difference(
    one: tuple[float, Mapping[str, Any]],
    other: tuple[float, Mapping[str, Any]],
    a: MirResult,
    b: MirResult,
    paired: bool,
    confidence: float = CONFIDENCE,
) -> Difference:
    difference = other[0] - one[0]
    if not (has_uncertainty(a.uncertainty) and has_uncertainty(b.uncertainty)):
        return Difference(one[0], other[0], difference, None, None, None)
    of_one, of_other = influences_of(one[1], a.checkpoint), influences_of(other[1], b.checkpoint)
    if paired:
        error = standard_error([v - u for u, v in zip(of_one, of_other, strict=True)])
    else:
        error = math.hypot(standard_error(of_one), standard_error(of_other))
    half = half_width(error, min(len(of_one), len(of_other)), confidence)
    return Difference(one[0], other[0], difference, error, difference - half, difference + half)
