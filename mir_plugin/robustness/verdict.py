"""How far each robustness study moves MIR, compared with the differences between checkpoints. Plain numbers only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mir_plugin.robustness.results import (
    NUMBER,
    STUDIES,
    ChoiceResult,
    ConditionResult,
    Verdict,
    order_of,
    order_on_all,
)

# A spread below this share of a difference cannot turn it round, even if both checkpoints move by it in opposite ways.
HARMLESS_RATIO = 0.5
Table = dict[str, dict[str, float]]  # condition → checkpoint → MIR


def verdicts(
    conditions: Sequence[ConditionResult], choices: Sequence[ChoiceResult], against: Mapping[str, float]
) -> tuple[Verdict, ...]:
    """One for each study, in their order: its spread against the smallest difference between two checkpoints.

    Differences are taken under the first condition of all, which every checkpoint and, ideally, every result in
    ``against`` (name → MIR) was measured under. Where several checkpoints ran, what counts is whether each condition
    ranks them alike: as the study's first condition does, or, for the number of samples, as all samples do.
    """
    base = {one.checkpoint: one.mir for one in reversed(conditions) if one.condition == conditions[0].condition}
    difference = smallest_difference([*base.values(), *against.values()])
    tables: dict[str, Table] = {}
    for one in conditions:
        tables.setdefault(one.study, {}).setdefault(one.condition, {})[one.checkpoint] = one.mir
    judged = []
    for study, question in STUDIES.items():
        if study == NUMBER and choices:
            n = compared_size(choices)
            of_size = table_of_size(choices, n)
            asked = f"{question} ({len(of_size)} choices of {n})"
            judged.append(_verdict(study, asked, of_size, difference, order_on_all(choices)))
        elif study in tables and study != NUMBER:
            table = tables[study]
            judged.append(_verdict(study, question, table, difference, order_of(next(iter(table.values())))))
    return tuple(judged)


def smallest_difference(values: Sequence[float]) -> float | None:
    """The smallest difference between any two of the values; None for fewer than two.

    >>> smallest_difference([3.0, 1.0, 1.5])
    0.5
    """
    return min((high - low for low, high in itertools.pairwise(sorted(values))), default=None)


def compared_size(choices: Sequence[ChoiceResult]) -> int:
    """The number of samples whose choices are judged: the largest that is at most half of all.

    Larger choices share so many samples that their spread says little about other samples.

    >>> compared_size([ChoiceResult("a", n, 0, 1.0) for n in (1, 10, 50, 100)])
    50
    """
    sizes = sorted({one.n_samples for one in choices})
    return max((size for size in sizes if 2 * size <= sizes[-1]), default=sizes[0])


def table_of_size(choices: Sequence[ChoiceResult], n_samples: int) -> Table:
    """MIR of the choices of one size: seed → checkpoint → MIR. One seed is the same samples for all checkpoints."""
    table: Table = {}
    for one in choices:
        if one.n_samples == n_samples:
            table.setdefault(f"seed {one.seed}", {})[one.checkpoint] = one.mir
    return table


def _verdict(study: str, question: str, table: Table, difference: float | None, reference: tuple[str, ...]) -> Verdict:
    of_checkpoints = [[row[name] for row in table.values()] for name in reference]
    spread = max(max(values) - min(values) for values in of_checkpoints)
    ratio = spread / difference if difference else None
    n_orders = len(table) if len(reference) > 1 else 0
    n_same = sum(order_of(row) == reference for row in table.values()) if n_orders else 0
    noun = "choices" if study == NUMBER else "conditions"
    outcome, because = _outcome(difference, ratio, n_orders, n_same, noun)
    comparison = (
        "" if ratio is None else f", {ratio:.2g} × the smallest difference between checkpoints ({difference:.3f})"
    )
    sentence = f"{question}: MIR moves by up to {spread:.3f}{comparison}; {because}."
    return Verdict(study, question, spread, difference, ratio, n_orders, n_same, outcome, sentence)


def _outcome(difference: float | None, ratio: float | None, n_orders: int, n_same: int, noun: str) -> tuple[str, str]:
    if n_same < n_orders:
        return "not robust", f"{n_orders - n_same} of {n_orders} {noun} rank the checkpoints differently"
    if n_orders:
        alike = f"all {n_orders} {noun} rank the checkpoints alike"
        if ratio is None or ratio < 1:
            return "robust", alike
        return "order kept", f"{alike}, but values of different {noun} must not be compared"
    if difference is None:
        return "nothing to compare with", (
            "there is no second checkpoint to compare with: add one, or its mir.json with --against"
        )
    if ratio is None:
        return "unclear", "two checkpoints have the same MIR"
    if ratio < HARMLESS_RATIO:
        return "robust", "too little to reverse a difference"
    if ratio < 1:
        return "unclear", "enough to reverse a difference if the other checkpoint moves the opposite way"
    return "not robust", f"as much as a difference between checkpoints: compare the same {noun} only"
