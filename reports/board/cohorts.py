"""Which MIR values may share a ranking, and which one of a checkpoint is ranked."""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mir_plugin.measurement.comparable import allowed_differences
from mir_plugin.reports.board.board import Cohort
from mir_plugin.reports.read.records import (
    COMPARABILITY_PARTS,
    KNOWN_TO_FEW,
    UNSTATED,
    Comparability,
    Measurement,
    Problem,
)


def choose_measurements(
    measured: Mapping[str, Sequence[Measurement]], names: Mapping[str, str]
) -> tuple[dict[str, Measurement], tuple[Cohort, ...], list[Problem]]:
    """One measurement per identity, the cohorts they fall into (largest first), and what was left out.

    Where a checkpoint was measured in several ways, the way that most checkpoints share is taken, then the one with a
    per-layer table, then the newest.
    """
    measured = _with_what_others_know(measured)
    distinct = {identity: _without_copies(measurements) for identity, measurements in measured.items()}
    members: dict[Comparability, set[str]] = defaultdict(set)
    for identity, measurements in distinct.items():
        for measurement in measurements:
            members[measurement.comparability].add(identity)

    def preference(measurement: Measurement) -> tuple[int, bool, str, str]:
        n_sharing = len(members[measurement.comparability])
        return n_sharing, bool(measurement.layers), measurement.date, measurement.run_id

    chosen = {identity: max(measurements, key=preference) for identity, measurements in distinct.items()}
    sizes: dict[Comparability, int] = defaultdict(int)
    for measurement in chosen.values():
        sizes[measurement.comparability] += 1
    ordered = sorted(sizes, key=lambda c: (-sizes[c], c.estimator, c.samples, c.protocol))
    cohorts = tuple(Cohort(_letters(i), c, sizes[c]) for i, c in enumerate(ordered))
    problems = [
        _left_out(names[identity], chosen[identity], other)
        for identity, measurements in distinct.items()
        for other in measurements
        if other is not chosen[identity] and other.run_id != chosen[identity].run_id  # a look of the same measurement
    ]
    return chosen, cohorts, problems


def _with_what_others_know(measured: Mapping[str, Sequence[Measurement]]) -> dict[str, list[Measurement]]:
    """The same measurements; one that does not state its dtype or inputs takes those of all others like it.

    Tables and results of older schemas state neither. Where the others differ among themselves, it stays alone.
    """
    stated = {one.comparability for measurements in measured.values() for one in measurements}

    def completed(measurement: Measurement) -> Measurement:
        own = measurement.comparability
        if UNSTATED not in (own.dtype, own.inputs) or own.samples == UNSTATED:
            return measurement
        fitting = {one for one in stated if all(part in KNOWN_TO_FEW for part in own.differing(one))}
        fuller = {one for one in fitting if UNSTATED not in (one.dtype, one.inputs)}
        return replace(measurement, comparability=fuller.pop()) if len(fuller) == 1 else measurement

    return {identity: list(map(completed, measurements)) for identity, measurements in measured.items()}


def prepared_differently(chosen: Mapping[str, Measurement], names: Mapping[str, str]) -> list[Problem]:
    """What reached models otherwise than that of the first checkpoint, because the checkpoints differ."""
    first: dict[Comparability, str] = {}
    problems = []
    for identity, measurement in chosen.items():
        like = first.setdefault(measurement.comparability, identity)
        reference, result = chosen[like].result, measurement.result
        if reference is None or result is None:
            continue
        for sentence in allowed_differences(reference, result, (names[like], names[identity])):
            problems.append(Problem("note", "incomparable", names[identity], sentence.rstrip(".")))
    return problems


def _without_copies(measurements: Sequence[Measurement]) -> list[Measurement]:
    """A host's results file repeats what a ``mir.json`` beside it holds, whole or the number alone; one is kept."""
    kept: list[Measurement] = []
    for measurement in sorted(measurements, key=lambda m: -len(m.layers)):
        if not any(_repeats(measurement, other) for other in kept):
            kept.append(measurement)
    return kept


def _repeats(measurement: Measurement, fuller: Measurement) -> bool:
    if measurement.layers:
        return (measurement.date, measurement.layers) == (fuller.date, fuller.layers)
    return bool(fuller.layers) and math.isclose(measurement.mir, fuller.mir, rel_tol=1e-9)


def _left_out(name: str, used: Measurement, other: Measurement) -> Problem:
    differing = used.comparability.differing(other.comparability)
    if not differing:
        what = f"MIR {used.mir:.3f} ({used.date or 'no date'}) is used, not {other.mir:.3f} ({other.date or 'no date'})"
        return Problem("note", "superseded", name, what)
    what = f"MIR {other.mir:.3f} ({other.run_id}) differs in {' and '.join(differing)} from the one that is ranked"
    return Problem("warning", "incomparable", name, what, "Measure all checkpoints with the same samples and options.")


def cohort_warnings(cohorts: Sequence[Cohort]) -> list[str]:
    """What must be visible beside the ranking: values that must not be compared, and sources that do not say."""
    warnings = []
    if len(cohorts) > 1:
        differing = sorted({n for c in cohorts[1:] for n in cohorts[0].comparability.differing(c.comparability)})
        listed = "; ".join(map(briefly, cohorts))
        warnings.append(
            f"MIR values of different cohorts must not be compared: they differ in {', '.join(differing)}. "
            f"Ranks count within a cohort. {listed}."
        )
    for cohort in cohorts:
        unstated = [
            part
            for part in COMPARABILITY_PARTS
            if part not in KNOWN_TO_FEW and getattr(cohort.comparability, part) == UNSTATED
        ]
        if unstated and cohort.n_rows > 1:
            warnings.append(
                f"The sources of cohort {cohort.name} do not state the {', '.join(unstated)} of their MIR values; "
                "compare them only if you know that they agree."
            )
    return warnings


def describe(cohort: Cohort) -> str:
    """One line for a person: name, size, estimator, samples and protocol."""
    parts = cohort.comparability
    return (
        f"{cohort.name}: {cohort.n_rows} checkpoint{'' if cohort.n_rows == 1 else 's'}, estimator {parts.estimator}, "
        f"samples {parts.samples}, protocol {parts.protocol}, dtype {parts.dtype}, inputs {parts.inputs}"
    )


def briefly(cohort: Cohort) -> str:
    """Name, size and estimator; fingerprints stand in the footnote of the page and in the table of runs."""
    count = f"{cohort.n_rows} checkpoint{'' if cohort.n_rows == 1 else 's'}"
    return f"{cohort.name}: {count}, estimator {cohort.comparability.estimator}"


def _letters(index: int) -> str:
    """A … Z, AA, AB …"""
    letters = string.ascii_uppercase
    return letters[index] if index < 26 else _letters(index // 26 - 1) + letters[index % 26]
