"""Two results side by side: paired where they share their samples, with the uncertainty of the difference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, on_common_samples, protocol_differences
from mir_plugin.metric.uncertainty import (
    CONFIDENCE,
    TOLERANCE,
    half_width,
    has_uncertainty,
    influences_of,
    standard_error,
)
from mir_plugin.results import MirResult


@dataclass(frozen=True)
class Difference:
    """B − A of one quantity; error and intervals are None where a result was measured without its uncertainty.

    Attributes:
        low, high: the interval; the difference is certain where it excludes 0.
        equivalence_low, equivalence_high: the interval of the equivalence test (TOST), with twice the error
            probability; the difference is certain to be within a tolerance where this interval is.
    """

    a: float
    b: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    equivalence_low: float | None = None
    equivalence_high: float | None = None

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval of the difference excludes 0; None if there is no interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0 <= self.high

    def may_be_within(self, tolerance: float) -> bool | None:
        """Whether the interval leaves room for a difference of at most the tolerance; None if there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= tolerance and self.high >= -tolerance

    def is_within(self, tolerance: float) -> bool | None:
        """Whether the difference is shown to be at most the tolerance; never for 0. None if there is no interval."""
        if self.equivalence_low is None or self.equivalence_high is None:
            return None
        return tolerance > 0 and -tolerance <= self.equivalence_low and self.equivalence_high <= tolerance


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
        tolerance: a difference of MIR up to this does not matter.
    """

    a: str
    b: str
    paired: bool
    differing: tuple[str, ...]
    told: tuple[str, ...]
    mir: Difference
    layers: tuple[Difference, ...]
    tolerance: float = TOLERANCE

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

    @property
    def size(self) -> str:
        """Whether the difference matters, in one sentence; empty where that was not asked or is unknown."""
        if self.mir.distinguishable is None or self.tolerance == 0:
            return ""
        if self.mir.is_within(self.tolerance):
            inner = f"{self.mir.equivalence_low:+.4f} … {self.mir.equivalence_high:+.4f}"
            level = f"{2 * CONFIDENCE - 1:.0%} interval {inner}, equivalence test"
            return f"within {self.tolerance:g} of each other: of no practical importance ({level})."
        if not self.mir.may_be_within(self.tolerance):
            return f"more than {self.tolerance:g} apart."
        return f"may be within {self.tolerance:g} of each other: more samples would tell."

    def as_json(self) -> dict[str, Any]:
        """All fields, with the verdict and whether the two are distinguishable, as plain JSON values."""
        return {
            **dataclasses.asdict(self),
            "distinguishable": self.mir.distinguishable,
            "within_tolerance": self.mir.is_within(self.tolerance),
            "confidence": CONFIDENCE,
            "verdict": self.verdict,
            "size": self.size,
        }


def compare_results(a: MirResult, b: MirResult, *, anyway: bool = False, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two measurements; the difference is B − A.

    On the same samples the influences are subtracted sample by sample before they are squared. On different samples
    the two are taken as independent.

    Args:
        anyway: compare although samples or protocol differ.
        tolerance: differences of MIR up to this do not matter to the user; 0 asks for certainty alone.
    Raises:
        MirError: if samples or protocol differ and ``anyway`` is not set; says in what.
    """
    told = _about_numbers(a, b)
    a, b = on_common_samples(a, b)
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
        told=(*told, *allowed_differences(a, b)),
        mir=mir_difference(a, b),
        layers=tuple(layers),
        tolerance=tolerance,
    )


def mir_difference(
    a: MirResult, b: MirResult, confidence: float = CONFIDENCE, equivalence: float | None = None
) -> Difference:
    """The difference of MIR, B − A, paired over the samples where they are the same.

    Args:
        confidence: of the interval.
        equivalence: of the interval of the equivalence test; by default with twice the error probability.
    """
    a, b = on_common_samples(a, b)
    values = (a.mir, a.uncertainty), (b.mir, b.uncertainty)
    return _difference(*values, a, b, _share_samples(a, b), confidence, equivalence)


def _about_numbers(a: MirResult, b: MirResult) -> tuple[str, ...]:
    """That two results with ``--precision`` are compared on the samples that both have."""
    ours, theirs = on_common_samples(a, b)
    if a.n_samples == b.n_samples == ours.n_samples or not _share_samples(ours, theirs):
        return ()
    return (f"Measured on {a.n_samples} (A) and {b.n_samples} (B) samples; compared on {ours.n_samples}.",)


def _share_samples(a: MirResult, b: MirResult) -> bool:
    return a.fingerprints.get("samples") == b.fingerprints.get("samples") and a.n_samples == b.n_samples


def _difference(
    one: tuple[float, Mapping[str, Any]],
    other: tuple[float, Mapping[str, Any]],
    a: MirResult,
    b: MirResult,
    paired: bool,
    confidence: float = CONFIDENCE,
    equivalence: float | None = None,
) -> Difference:
    difference = other[0] - one[0]
    if not (has_uncertainty(a.uncertainty) and has_uncertainty(b.uncertainty)):
        return Difference(one[0], other[0], difference, None, None, None)
    of_one, of_other = influences_of(one[1], a.checkpoint), influences_of(other[1], b.checkpoint)
    if paired:
        error = standard_error([v - u for u, v in zip(of_one, of_other, strict=True)])
    else:
        error = math.hypot(standard_error(of_one), standard_error(of_other))
    n_samples = min(len(of_one), len(of_other))
    equivalence = 2 * confidence - 1 if equivalence is None else equivalence
    half, inner = (half_width(error, n_samples, level) for level in (confidence, equivalence))
    intervals = (difference - half, difference + half, difference - inner, difference + inner)
    return Difference(one[0], other[0], difference, error, *intervals)
