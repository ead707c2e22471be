"""What a benchmark of a report is, where each host writes its headline number, and what an average is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LMMS_EVAL = "lmms-eval"
VLMEVALKIT = "vlmevalkit"
TABLE = "table"

FRACTION = 100.0  # factor from 0-1 to percent
PERCENT = 1.0
POINTS = 1.0
ROUNDING = 1e-6
MEAN_OF = " + "


@dataclass(frozen=True)
class Headline:
    """Where one host writes a benchmark's headline number.

    Attributes:
        tasks: names of the benchmark in that host; compared without regard to case.
        metric: lmms-eval: the metric before the comma; VLMEvalKit: ``split|column``, ``*`` for any split. Several,
            joined by `` + ``, mean their mean.
        factor: what brings the host's number to the benchmark's own scale.
    """

    host: str
    tasks: tuple[str, ...]
    metric: str
    factor: float = FRACTION

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics whose mean is the headline number; mostly one."""
        return tuple(self.metric.split(MEAN_OF))


@dataclass(frozen=True)
class Benchmark:
    """One column of a report.

    Attributes:
        key: stable short name, used in configurations and files.
        name: heading.
        headlines: where each host writes it; the first that matches is read.
        columns: headings under which plain tables give it, on the benchmark's own scale.
        unit: "percent" (0-100) or "points".
        to_percent: factor that enters the average; MME's 2000 points of perception count as percent after / 20.
        higher_is_better: direction of "best"; None where nobody has said, and no value is marked as the best.
        averaged: whether it may enter an average: its scale is known.
        decimals: with which it is shown.
        points: how many there are to reach, in the unit "points"; None where there is no limit.
    """

    key: str
    name: str
    headlines: tuple[Headline, ...] = ()
    columns: tuple[str, ...] = ()
    unit: Literal["percent", "points"] = "percent"
    to_percent: float = 1.0
    higher_is_better: bool | None = True
    averaged: bool = True
    decimals: int = 1
    points: float | None = None

    def can_be(self, value: float) -> bool:
        """Whether a score lies on the benchmark's scale: one that does not was damaged, or is on another scale."""
        highest = 100.0 if self.unit == "percent" else self.points
        return highest is None or -ROUNDING <= value <= highest + ROUNDING


@dataclass(frozen=True)
class AverageSet:
    """A named choice of benchmarks to average over.

    Attributes:
        title: what the set is, as it follows "mean of".
        keys: of its benchmarks, all with the same weight.
    """

    name: str
    title: str
    keys: tuple[str, ...]


PAPER_7 = ("mmstar", "mmbench", "mmbench_cn", "seed_image", "textvqa", "scienceqa_image", "gqa")
AVERAGE_SETS = {
    one.name: one
    for one in (
        AverageSet("paper-7", "the seven benchmarks of the paper's table 2", PAPER_7),
        AverageSet("paper-9", "the nine benchmarks of the paper's tables 1, 3 and 4", (*PAPER_7, "mme", "pope")),
        AverageSet(
            "openvlm-8",
            "the eight benchmarks of the OpenVLM leaderboard (MMBench v1.1 on its English dev split)",
            ("mmbench_v11", "mmstar", "mmmu", "mathvista", "hallusionbench", "ai2d", "ocrbench", "mmvet"),
        ),
    )
}
DEFAULT_AVERAGE = "paper-7"
OWN_AVERAGE = "own"


def find_headlines(host: str, task: str, benchmarks: Sequence[Benchmark]) -> Sequence[tuple[Benchmark, Headline]]:
    """Benchmarks that a host's task feeds (MME feeds two), each with the headline to read."""
    wanted = task.casefold()
    return [
        (benchmark, headline)
        for benchmark in benchmarks
        for headline in benchmark.headlines
        if headline.host == host and wanted in (name.casefold() for name in headline.tasks)
    ]


def find_column(heading: str, benchmarks: Sequence[Benchmark]) -> Benchmark | None:
    """The benchmark that a plain table means by this heading: its key, name or one of its other headings.

    Spaces, hyphens and underscores do not count. Of several matches the last wins; user-defined ones come last.
    """
    wanted = _letters(heading)
    for benchmark in reversed(benchmarks):
        if wanted in map(_letters, (benchmark.key, benchmark.name, *benchmark.columns)):
            return benchmark
    return None


def _letters(heading: str) -> str:
    """
    >>> _letters("SEED-Bench IMG"), _letters("MMB_CN"), _letters("Avg.")
    ('seedbenchimg', 'mmbcn', 'avg')
    """
    return "".join(filter(str.isalnum, heading.casefold()))


def as_written(heading: str, values: Iterable[float], key: str = "") -> Benchmark:
    """A column of undeclared scale and direction: shown as written, in no average."""
    decimals = max((len(f"{value:.4f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    return Benchmark(key or heading, heading, unit="points", higher_is_better=None, averaged=False, decimals=decimals)


def weighted_average(
    scores: Mapping[str, float], weights: Mapping[str, float], benchmarks: Sequence[Benchmark]
) -> float | None:
    """Mean of percentages, MME divided by 20 (the paper's rule, checked against its tables); None if one is missing.

    Args:
        scores: benchmark key → value on the benchmark's own scale.
        weights: benchmark key → non-negative weight; keys without weight do not enter.
    """
    factors = {benchmark.key: benchmark.to_percent for benchmark in benchmarks}
    counted = {key: weight for key, weight in weights.items() if weight > 0}
    if not counted or any(key not in scores for key in counted):
        return None
    return sum(scores[key] * factors[key] * weight for key, weight in counted.items()) / sum(counted.values())
