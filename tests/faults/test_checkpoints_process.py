"""The same refusals as a program of its own: exit code, standard output and standard error as a script sees them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each
from faults.damage import FULL, MICRO, Damage, all_of, copy_original, cut, measured, removed, undamaged
from faults.test_checkpoints_files import hostile, nothing_ran
from pytest import approx

from tolerances import FORWARD

pytestmark = pytest.mark.slow

WEIGHTS = "model/model.safetensors"


def in_a_process(original: str, damage: Damage, *options: str, may_print: bool = False) -> Callable[[Bench], Outcome]:
    """Measure the damaged checkpoint in a process of its own; a refusal prints nothing on standard output."""

    def act(bench: Bench) -> Outcome:
        copy_original(original, bench.folder)
        damage(bench.folder)
        outcome = measured(bench, *options, run=bench.mir_process)
        assert may_print or outcome.out == "", outcome.out
        return outcome

    return act


def as_json(bench: Bench) -> Outcome:
    """``--json``: the value is what standard output says, and it says nothing else."""
    outcome = in_a_process(MICRO, lambda folder: None, "--json", may_print=True)(bench)
    return dataclasses.replace(outcome, value=json.loads(outcome.out)["mir"])


def the_number(value: object, _: Bench) -> str:
    # A program of its own may have another number of threads.
    assert value == approx(undamaged(MICRO), rel=FORWARD)
    return f"exit 0: MIR {value:.4f} as JSON, nothing else on standard output"


CASES = (
    Case(
        "program: weights cut",
        "model.safetensors ends in the middle; exit code and streams of the program",
        in_a_process(FULL, cut(WEIGHTS, 0.5), "--json"),
        Refused("model.safetensors", "Copy or download it again"),
    ),
    Case(
        "program: pickle runs code",
        "pytorch_model.bin of a Hugging Face checkpoint runs a command; as a program",
        nothing_ran(in_a_process(MICRO, all_of(removed(WEIGHTS), hostile("model/pytorch_model.bin")))),
        Refused("pytorch_model.bin", "could run code"),
        full=True,
    ),
    Case("program: undamaged", "nothing was done; as a program with --json", as_json, Right(the_number), full=True),
)


@each(CASES)
def test_the_program_fails_with_one_message_on_standard_error(case: Case, bench: Bench) -> None:
    bench.hold("checkpoints", case)
