"""``python -m benchmarks.precision DIR``: what ``mir sweep --precision`` saves, and whether its error rates hold.

DIR is what ``python -m examples.replication --out DIR`` wrote (its pre-trainings suffice). Every checkpoint is measured
on all looks, once. Then

* each study of each seed is swept as ``--precision`` would, from these results, and as a sweep on all samples;
* differences on few samples are compared with those on all, which they estimate unless the number itself moves them;
* sets of checkpoints are drawn from the recorded influences of a study's checkpoints, with known true differences, and
  swept in the same way: how often is something shown that is not so?
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from examples.replication.outcomes import CheckpointPlan, planned
from examples.replication.recipe import RECIPE, STUDIES
from examples.replication.work import sample_sets
from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.measurement.growing import GrowingMeasurement, NestedSamples
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.metric.uncertainty import TOLERANCE, influences_of, uncertainty
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.results import Look, MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.comparison import mir_difference
from mir_plugin.selection.further import further_looks
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import Selection, select
from mir_plugin.selection.sweep import SweepEntry

Results = Mapping[str, MirResult]


def main() -> None:
    """Measure what is missing, then print two Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", type=float, nargs="+", default=[0.01, 0.002])
    parser.add_argument("--samples", choices=("captioned", "prose", "photographs"), default="captioned")
    parser.add_argument("--sets", type=int, default=1000, help="drawn sets of checkpoints for each error rate")
    options = parser.parse_args()
    plans = list(planned(options.folder, RECIPE, range(options.seeds)))
    samples = getattr(sample_sets(RECIPE.n_samples), options.samples)
    nested = NestedSamples(samples, 0.0)
    measured = dict(_measured(plans, nested, options.folder / f"looks-{options.samples}"))
    for target in options.precision:
        print_savings(plans, measured, NestedSamples(samples, target))
    print_drift(plans, measured, nested)
    print_error_rates(plans, measured, samples, options.sets)


def _measured(
    plans: Sequence[CheckpointPlan], nested: NestedSamples, out: Path
) -> Iterator[tuple[CheckpointPlan, MirResult]]:
    """Every checkpoint on all looks; what an earlier call measured is read."""
    shared = SharedParts()
    for plan in plans:
        checkpoint = Checkpoint(plan.folder, LoadOptions(device="cpu"))
        folder = out / f"{plan.run_dir.name}-{plan.step}"
        growing = GrowingMeasurement(Measurement(checkpoint, nested.all, MirConfig(), folder, 16), nested)
        known = growing.known()
        if known is None or known.numbers_of_samples != nested.planned:
            adapter = growing.whole.load(shared)
            with KeptFeatures(len(adapter.decoder.layers)) as kept:
                for n in nested.planned:
                    known = growing.measure(n, adapter, kept)
        assert known
        yield plan, known


def swept(candidates: Sequence[Candidate], nested: NestedSamples, tolerance: float = TOLERANCE) -> list[Candidate]:
    """As ``mir sweep --precision`` leaves them: with as many samples as it took."""
    entries = [
        SweepEntry(Path(one.name), one.name, one.run, one.step, "measured", one.result.at(nested.planned[0]))
        for one in candidates
    ]
    whole = {one.name: one.result for one in candidates}
    while looks := further_looks(entries, nested, tolerance):
        entries = [
            dataclasses.replace(one, result=whole[one.name].at(looks[one.name])) if one.name in looks else one
            for one in entries
        ]
    return [Candidate(one.name, one.run, one.step, one.result) for one in entries if one.result]


def print_savings(
    plans: Sequence[CheckpointPlan], measured: Mapping[CheckpointPlan, MirResult], nested: NestedSamples
) -> None:
    """Samples used and verdicts of each study's sweep, with ``--precision`` and on all samples."""
    print(f"\n### `--precision {nested.target:g}`, {nested.planned[-1]} samples at most\n")
    print("| sweep | seed | checkpoints | samples run, of all | verdict on all | with --precision | same |")
    print("|---|---|---|---|---|---|---|")
    used = {True: 0, False: 0}
    all_same = []
    for name, seed, members in _sweeps(plans):
        candidates = [
            Candidate(f"{plan.pre_training.name}-{plan.step}", plan.run_dir.name, plan.step, measured[plan])
            for plan in members
        ]
        on_all = [dataclasses.replace(one, result=_plain(one.result)) for one in candidates]
        stopped = swept(candidates, nested)
        expected, found = select(on_all), select(stopped)
        n = sum(one.result.n_samples for one in stopped)
        same = _outcome(expected) == _outcome(found)
        all_same.append(same)
        used[True] += n
        used[False] += len(members) * nested.planned[-1]
        share = n / (len(members) * nested.planned[-1])
        cells = [name, seed, len(members), f"{share:.0%}", _words(expected), _words(found), "yes" if same else "**no**"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(
        f"\nSame verdict in {sum(all_same)} of {len(all_same)}; {used[True] / used[False]:.0%} of the forward passes."
    )


def _plain(result: MirResult) -> MirResult:
    return dataclasses.replace(result, looks=(), planned=())


def _outcome(selection: Selection) -> tuple[str, str]:
    return selection.outcome, selection.recommended.name


def _words(selection: Selection) -> str:
    return f"{selection.outcome}: {selection.recommended.name}"


def _sweeps(plans: Sequence[CheckpointPlan]) -> Iterator[tuple[str, int, list[CheckpointPlan]]]:
    """Each study of each seed, and all checkpoints of a seed."""
    baseline = plans[0].pre_training
    for seed in sorted({plan.seed for plan in plans}):
        own = [plan for plan in plans if plan.seed == seed]
        for study in STUDIES:
            if study.varied == "step":
                yield study.name, seed, [plan for plan in own if plan.pre_training == baseline]
                continue
            last = [plan for plan in own if plan.step == max(plan.pre_training.saved_steps)]
            varied = [
                plan
                for plan in last
                if plan.pre_training == baseline
                or getattr(plan.pre_training, study.varied) != getattr(baseline, study.varied)
            ]
            yield study.name, seed, varied
        yield "all", seed, own


def print_drift(
    plans: Sequence[CheckpointPlan], measured: Mapping[CheckpointPlan, MirResult], nested: NestedSamples
) -> None:
    """Whether a difference of two checkpoints moves with the number of samples by more than its error."""
    print("\n### Differences of two checkpoints of a seed on n samples, and on all\n")
    print("| n | pairs | mean of difference on n ÷ on all, weighted | rms of (on n less on all) ÷ its standard error |")
    print("|---|---|---|---|")
    pairs = [(a, b) for a, b in itertools.combinations(plans, 2) if a.seed == b.seed]
    for n in nested.planned[:-1]:
        ratios, scores = [], []
        for pair in pairs:
            one, other = (measured[plan] for plan in pair)
            whole = mir_difference(one, other)
            part = mir_difference(one.at(n), other.at(n))
            assert whole.standard_error
            # Of a mean of n out of N numbers, less that of all N.
            error = whole.standard_error * (nested.planned[-1] / n - 1) ** 0.5
            ratios.append((part.difference * whole.difference, whole.difference**2))
            scores.append((part.difference - whole.difference) / error)
        ratio = sum(a for a, _ in ratios) / sum(b for _, b in ratios)
        rms = statistics.fmean(score**2 for score in scores) ** 0.5
        print(f"| {n} | {len(pairs)} | {ratio:.3f} | {rms:.2f} |")


def print_error_rates(
    plans: Sequence[CheckpointPlan],
    measured: Mapping[CheckpointPlan, MirResult],
    samples: SampleSet,
    n_sets: int,
) -> None:
    """How often a sweep shows what is not so, at true differences on the border of what it tests."""
    print(f"\n### Errors of a whole sweep, {n_sets} drawn sets for each row\n")
    print("| checkpoints | true differences | way | wrongly worse | wrongly within | samples run |")
    print("|---|---|---|---|---|---|")
    nested = NestedSamples(samples, 0.0)
    for n_checkpoints in (2, 6):
        members = [measured[plan] for plan in plans if plan.seed == 0 and plan.pre_training == plans[0].pre_training]
        for way in ("as `--precision`", "all samples, one look", "every look at 95 %"):
            for tolerance, words in ((0.0, "0, tolerance 0"), (TOLERANCE, f"{TOLERANCE}, tolerance {TOLERANCE}")):
                counts = [
                    _errors(members[:n_checkpoints], nested, tolerance, way, random.Random(f"{n_checkpoints} {seed}"))
                    for seed in range(n_sets)
                ]
                worse, within, share = (statistics.fmean(column) for column in zip(*counts, strict=True))
                shown = f"{within:.1%}" if tolerance else ""
                print(f"| {n_checkpoints} | {words} | {way} | {worse:.1%} | {shown} | {share:.0%} |", flush=True)


def _errors(
    results: Sequence[MirResult], nested: NestedSamples, tolerance: float, way: str, generator: random.Random
) -> tuple[bool, bool, float]:
    """Of one drawn set, its others ``tolerance`` behind the first: any worse? any within? Share of samples."""
    candidates = drawn(results, tolerance, nested.planned, generator)
    if way.startswith("all"):
        stopped = [dataclasses.replace(one, result=_plain(one.result)) for one in candidates]
    elif way.startswith("every"):
        return _naive(candidates, nested.planned, tolerance)
    else:
        stopped = swept(candidates, nested, tolerance)
    ranking = select(stopped, tolerance=tolerance).ranking
    share = sum(one.result.n_samples for one in stopped) / len(stopped) / nested.planned[-1]
    worse = any(one.tied is False for one in ranking)
    within = any(one.within is True and "0" in (one.candidate.name, one.against.name) for one in ranking if one.against)
    return worse, within, share


def _naive(candidates: Sequence[Candidate], planned: Sequence[int], tolerance: float) -> tuple[bool, bool, float]:
    """Stops at the first look at which the ordinary verdict shows something."""
    worse = within = False
    for n in planned:
        now = [dataclasses.replace(one, result=_plain(one.result.at(n))) for one in candidates]
        ranking = select(now, tolerance=tolerance).ranking
        worse |= any(one.tied is False for one in ranking)
        within |= any(
            one.within is True and "0" in (one.candidate.name, one.against.name) for one in ranking if one.against
        )
    return worse, within, 1.0


def drawn(
    results: Sequence[MirResult], behind: float, planned: Sequence[int], generator: random.Random
) -> list[Candidate]:
    """Results on samples drawn anew, with replacement, from those of recorded ones; the first is ``behind`` better.

    A sample adds to MIR what its recorded influence says: a mean of independent, identically distributed numbers.
    """
    influences = [influences_of(one.uncertainty, "recorded") for one in results]
    n_recorded = len(influences[0])
    chosen = [generator.randrange(n_recorded) for _ in range(planned[-1])]
    candidates = []
    for number, (of_one, recorded) in enumerate(zip(influences, results, strict=True)):
        values = [n_recorded * of_one[index] for index in chosen]
        base = 2.0 + behind * (number > 0)
        looks = [_look(base, values[:n]) for n in planned]
        last = looks[-1]
        fields = {one.name: getattr(last, one.name) for one in dataclasses.fields(Look)}
        result = dataclasses.replace(recorded, **fields, looks=tuple(looks[:-1]), planned=tuple(planned), layers=())
        candidates.append(Candidate(str(number), "run", number, result))
    return candidates


def _look(base: float, values: Sequence[float]) -> Look:
    mean = statistics.fmean(values)
    spread = uncertainty([1.0], [[0.0] * len(values)])
    own = [(value - mean) / len(values) for value in values]
    from mir_plugin.metric.uncertainty import half_width, standard_error

    error = standard_error(own)
    mir, half = base + mean, half_width(error, len(values))
    line = " ".join(f"{one:.8g}" for one in own)
    spread = {**spread, "standard_error": error, "low": mir - half, "high": mir + half, "influences": line}
    prints = {"samples": f"first {len(values)}", "protocol": "", "checkpoint": ""}
    return Look(len(values), mir, None, None, prints, {}, {}, spread)


if __name__ == "__main__":
    main()
