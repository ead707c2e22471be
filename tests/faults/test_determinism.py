"""What repeats to the last bit, and how far the rest moves."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from faults.battery import Bench, Case, Outcome, Right, each
from faults.children import Child, mir
from faults.variation import differences, variations

from mir_plugin.results import MirResult
from mir_plugin.samples.sources import from_folders

from golden_data import require_golden
from tolerances import FORWARD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux"),
]
# What moves with the weather; all other fields have to be the same to the last bit.
VOLATILE = ("timing", "peak_memory", "created")


def options(name: str, *more: object) -> list[object]:
    case = require_golden(f"llava/{name}")
    arguments: list[object] = ["run", case / "model", "--images", case / "samples", "--texts", case / "samples"]
    return [*arguments, "--vision-tower", case / "vision_tower", "--device", "cpu", "--force", *more]


def told(result: MirResult) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in VOLATILE}


def twice_in_one_process(name: str, *more: object) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        results = []
        for n in (1, 2):
            outcome = bench.mir(*options(name, "--out", f"out-{n}", *more))
            assert outcome.exit_code == 0, outcome.err
            results.append(told(MirResult.load(bench.folder / f"out-{n}" / "mir.json")))
        return the_same(results)

    return act


def in_two_processes(name: str, *more: object) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        results = []
        for n in (1, 2):
            ended = Child(mir(*options(name, "--out", f"out-{n}", *more))).ended()
            assert ended.code == 0, ended.printed
            results.append(told(MirResult.load(bench.folder / f"out-{n}" / "mir.json")))
        return the_same(results)

    return act


def in_two_programs(bench: Bench) -> Outcome:
    results = []
    for n in (1, 2):
        outcome = bench.mir_process(
            *options("llava_full", "--out", f"out-{n}"), env={"PYTHONHASHSEED": str(n), "OMP_NUM_THREADS": "1"}
        )
        assert outcome.exit_code == 0, outcome.err
        results.append(told(MirResult.load(bench.folder / f"out-{n}" / "mir.json")))
    return the_same(results)


def the_same(results: Sequence[dict[str, Any]]) -> Outcome:
    first, *others = (json.dumps(result, sort_keys=True) for result in results)
    assert all(other == first for other in others)
    return Outcome(0, value=f"the same to the last bit: MIR {results[0]['mir']!r}")


def seeds(bench: Bench) -> Outcome:
    """The seed of the choice of samples, and nothing else, makes another measurement."""
    found = []
    for seed in (0, 0, 1):
        arguments = options("llava_full", "--out", "out", "--n-samples", 3, "--seed", seed, "--json")
        found.append(json.loads(bench.mir(*arguments).out)["mir"])
    assert found[0] == found[1] != found[2]
    return Outcome(0, value="the same seed to the last bit the same, another seed another choice and another MIR")


said = Right(lambda value, _: str(value))
CASES = (
    Case("twice in one process", "`mir run` twice in one process", twice_in_one_process("llava_full"), said),
    Case("twice in batches", "`mir run --batch-size 4` twice",
         twice_in_one_process("llava_full", "--batch-size", 4), said),
    Case("twice with MoCa", "`mir run` of a checkpoint with MoCa twice", twice_in_one_process("llava_moca"), said),
    Case("twice in bfloat16", "`mir run --dtype bfloat16` twice",
         twice_in_one_process("llava_full", "--dtype", "bfloat16"), said),
    Case("two processes", "`mir run` in two processes", in_two_processes("llava_full"), said),
    Case("two programs", "`mir run` in two programs, with another order of Python's hashes", in_two_programs, said,
         full=True),
    Case("seeds", "`mir run --n-samples 3` with seeds 0, 0 and 1", seeds, said),
)  # fmt: skip


@each(CASES)
def test_the_same_request_gives_the_same_bits(case: Case, bench: Bench) -> None:
    bench.hold("soak", case)


def vary(bench: Bench) -> Outcome:
    case = require_golden("llava/llava_full")
    samples = from_folders(case / "samples", case / "samples")
    (_, first), *others = variations(case / "model", case / "vision_tower", samples)
    moved = {name: differences(first, result) for name, result in others}
    assert moved.pop("the same again") == (0.0, 0.0)
    same_dtype = {name: one for name, one in moved.items() if "float16" not in name}
    assert len(same_dtype) == len(moved) - 6
    assert all(abs(of_mir) < FORWARD * first.mir for of_mir, _ in same_dtype.values()), moved
    for dtype in ("bfloat16", "float16"):
        assert moved[dtype] == moved[f"{dtype}, the same again"]
    largest = max(same_dtype, key=lambda name: abs(same_dtype[name][0]))
    return Outcome(0, value=f"MIR moves by {abs(same_dtype[largest][0]):.0e} at most ({largest})")


@each((Case("variations", "other numbers of threads, batch sizes and paths in float32", vary, said, full=True),))
@pytest.mark.usefixtures("one_thread")  # which puts back what the variations change
def test_what_should_not_matter_moves_only_the_last_digits(case: Case, bench: Bench) -> None:
    bench.hold("soak", case)
