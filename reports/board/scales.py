"""On which scale the columns of score tables are: declared, recognised by their values, or shown as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mir_plugin.reports.read.benchmarks import FRACTION, TABLE, Benchmark, as_written, find_column
from mir_plugin.reports.read.records import Problem, Score
from mir_plugin.reports.read.score_table import IN_PERCENT

MME, MME_TOTAL = "mme", "mme_total"
MOST_PERCEPTION = 1800.0  # points that few models reach in perception alone, and many with cognition
Place = tuple[str, str]  # file and heading of a column


@dataclass(frozen=True)
class ColumnReading:
    """How the numbers of one column of a table are read.

    Attributes:
        factor: what brings them to the benchmark's scale.
        doubtful_up_to: positive numbers up to this one are left out, unless they carry a percent sign.
    """

    benchmark: Benchmark
    factor: float = 1.0
    doubtful_up_to: float = 0.0

    def accepts(self, score: Score) -> bool:
        """Whether the number can be believed."""
        return score.metric.endswith(IN_PERCENT) or not 0 < score.value <= self.doubtful_up_to


def read_columns(
    scores: Iterable[Score], benchmarks: Sequence[Benchmark]
) -> tuple[dict[Place, ColumnReading], list[Problem]]:
    """A reading of every column of every table, and what a reader must know about it."""
    columns: dict[Place, list[Score]] = defaultdict(list)
    for score in scores:
        if score.host == TABLE:
            columns[score.run_id, score.task].append(score)
    readings: dict[Place, ColumnReading] = {}
    problems: list[Problem] = []
    undeclared: dict[str, list[Place]] = defaultdict(list)
    for place, column in columns.items():
        benchmark = find_column(place[1], benchmarks)
        if benchmark is None:
            undeclared[place[1]].append(place)
            continue
        readings[place], problem = _reading(benchmark, place, column, benchmarks)
        problems += [problem] if problem else []
    for heading, places in undeclared.items():
        shown = as_written(heading, (score.value for place in places for score in columns[place]))
        readings |= dict.fromkeys(places, ColumnReading(shown))
        problems.append(_shown_as_it_is(heading, places))
    return readings, problems


def _reading(
    benchmark: Benchmark, place: Place, column: Sequence[Score], benchmarks: Sequence[Benchmark]
) -> tuple[ColumnReading, Problem | None]:
    source, heading = place
    values = [score.value for score in column if not score.metric.endswith(IN_PERCENT)]
    highest = max(values, default=0.0)
    if benchmark.key == MME and heading.strip().casefold() == MME and highest > MOST_PERCEPTION:
        return _mme(benchmark, source, highest, {one.key: one for one in benchmarks})
    if benchmark.unit != "percent":
        return ColumnReading(benchmark), None
    positive = [value for value in values if value > 0]
    small = [value for value in positive if value <= 1]
    if not small:
        return ColumnReading(benchmark), None
    span = f"{min(small):g}" + (f" to {max(small):g}" if len(small) > 1 else "")
    if len(small) == len(positive) == len([s for s in column if s.value > 0]) and min(small) < 1:
        what = f"{heading} holds {span}: fractions, shown as percent"
        return ColumnReading(benchmark, FRACTION), Problem("note", "converted", source, what)
    what = f"{heading} holds {span}, perhaps fractions, but not in all rows; left empty"
    remedy = f"Write all of {heading} in percent; a percent sign settles a small one."
    return ColumnReading(benchmark, doubtful_up_to=1.0), Problem("warning", "missing", source, what, remedy)


def _mme(
    benchmark: Benchmark, source: str, highest: float, by_key: Mapping[str, Benchmark]
) -> tuple[ColumnReading, Problem]:
    if highest > (benchmark.points or 0) and MME_TOTAL in by_key:
        what = f"MME reaches {highest:g}, more than the {benchmark.points:g} points of perception: read as MME total"
        remedy = "Give perception in a column MME-P to include it in an average."
        return ColumnReading(by_key[MME_TOTAL]), Problem("warning", "converted", source, what, remedy)
    what = (
        f"MME reaches {highest:g}: perception alone rarely passes {MOST_PERCEPTION:g}, perception + cognition does; "
        "shown as it is, in no average"
    )
    remedy = "Head the column MME-P if it is perception, MME total if it is the sum."
    unclear = as_written("MME (as written)", [highest], key="mme_as_written")
    return ColumnReading(unclear), Problem("warning", "incomparable", source, what, remedy)


def _shown_as_it_is(heading: str, places: Sequence[Place]) -> Problem:
    files = ", ".join(dict.fromkeys(source for source, _ in places))
    what = f"{heading} is no benchmark that is known; shown as it is"
    return Problem("note", "missing", files, what, DECLARE)


DECLARE = "Set its scale under `define:` in the report's configuration to include it in an average."
