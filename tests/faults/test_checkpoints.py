"""Damaged, contradictory and hostile checkpoints."""

from __future__ import annotations

from faults.battery import Bench, Case, Outcome, Refused, each


def no_folder(bench: Bench) -> Outcome:
    return bench.mir("run", bench.folder / "nowhere", "--embedded")


CASES = (Case("no folder", "the checkpoint's folder does not exist", no_folder, Refused("nowhere")),)


@each(CASES)
def test_a_damaged_checkpoint_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("checkpoints", case)
