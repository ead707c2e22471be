"""From all scores that were read to the one score per checkpoint and benchmark that a board shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mir_plugin.reports.board.board import ScoreEntry
from mir_plugin.reports.board.checkpoints import Checkpoint
from mir_plugin.reports.board.scales import DECLARE, read_columns
from mir_plugin.reports.read.benchmarks import (
    LMMS_EVAL,
    TABLE,
    VLMEVALKIT,
    Benchmark,
    Headline,
    as_written,
    find_headlines,
)
from mir_plugin.reports.read.records import Problem, Score
from mir_plugin.reports.read.vlmevalkit import RUN_DIR

# Splits that stand for the whole of a VLMEvalKit data set, in the order in which they are preferred.
WHOLE_SPLITS = ("none", "Overall")


@dataclass(frozen=True)
class Headlines:
    """What a board shows of all scores.

    Attributes:
        entries: headline scores of all runs, those marked that the board uses.
        undeclared: columns that are shown as they are.
        problems: what could not be used or was superseded.
    """

    entries: tuple[ScoreEntry, ...]
    undeclared: tuple[Benchmark, ...]
    problems: tuple[Problem, ...]


Metrics = Mapping[str, Score]
Wanted = Sequence[tuple[Benchmark, Headline]]


def headline_entries(scores: Sequence[tuple[Checkpoint, Score]], benchmarks: Sequence[Benchmark]) -> Headlines:
    """Headline scores of all runs.

    For each checkpoint and benchmark a complete run beats a partial one, the host and task that most checkpoints have
    beat the others (their prompts differ), and then the newest wins.
    """
    readings, problems = read_columns((score for _, score in scores), benchmarks)
    # With the date: rows of one table may tell of several.
    tasks: dict[tuple[Checkpoint, str, str, str, str], dict[str, Score]] = defaultdict(dict)
    for checkpoint, score in scores:
        if score.host != TABLE or readings[score.run_id, score.task].accepts(score):
            tasks[checkpoint, score.run_id, score.host, score.task, score.date][score.metric] = score
    wanted, undeclared, notes = _wanted_of_hosts(tasks, benchmarks)
    problems += notes
    undeclared += [reading.benchmark for reading in readings.values()]
    entries: list[ScoreEntry] = []
    for (checkpoint, run_id, host, task, _), metrics in tasks.items():
        if host == TABLE:
            reading = readings[run_id, task]
            looked_for: Wanted = [(reading.benchmark, Headline(TABLE, (task,), "", reading.factor))]
        else:
            looked_for = wanted[host, task]
        found = _headlines_of(metrics, looked_for)
        for benchmark, headline, score in found:
            entry = _entry(checkpoint, benchmark, headline, score)
            if benchmark.can_be(entry.value):
                entries.append(entry)
            else:
                problems.append(_off_scale(benchmark, entry))
        if looked_for and not found:
            needed = ", ".join(dict.fromkeys(headline.metric for _, headline in looked_for))
            what = f"{task} has no {needed}; it has {', '.join(sorted(metrics))}"
            problems.append(Problem("warning", "missing", checkpoint.name, what, "Declare its metric under `define:`."))
    chosen, superseded = _choose(entries)
    known = {benchmark.key for benchmark in benchmarks}
    added = {benchmark.key: benchmark for benchmark in undeclared if benchmark.key not in known}
    return Headlines(tuple(chosen), tuple(added.values()), (*problems, *superseded))


def _wanted_of_hosts(
    tasks: Mapping[tuple[Checkpoint, str, str, str, str], Metrics], benchmarks: Sequence[Benchmark]
) -> tuple[dict[tuple[str, str], Wanted], list[Benchmark], list[Problem]]:
    """(host, task) → the benchmarks it feeds; a task that nobody declared feeds a column of its own name."""
    by_task: dict[tuple[str, str], list[Metrics]] = defaultdict(list)
    for (_, _, host, task, _), metrics in tasks.items():
        if host != TABLE:
            by_task[host, task].append(metrics)
    wanted: dict[tuple[str, str], Wanted] = {}
    undeclared, problems = [], []
    for (host, task), of_checkpoints in sorted(by_task.items(), key=lambda item: item[0]):
        wanted[host, task] = find_headlines(host, task, benchmarks)
        if wanted[host, task]:
            continue
        metric = _undeclared_metric(host, task, of_checkpoints)
        if metric is None:
            problems.append(_several_metrics(host, task, of_checkpoints))
            continue
        headline = Headline(host, (task,), metric, 1.0)
        values = [
            score.value for metrics in of_checkpoints for _, _, score in _headlines_of(metrics, [(_ANY, headline)])
        ]
        column = as_written(task, values)
        wanted[host, task] = [(column, headline)]
        undeclared.append(column)
        what = f"{task} is no benchmark that is known; its {metric} is shown as it is"
        problems.append(Problem("note", "missing", host, what, DECLARE))
    return wanted, undeclared, problems


_ANY = Benchmark("any", "any")
# Of a task that nobody declared, in the order in which they are taken for its headline.
USUAL_METRICS = {
    LMMS_EVAL: ("exact_match", "acc", "accuracy", "score", "overall", "average"),
    VLMEVALKIT: ("*|Overall", "Overall|Accuracy", "Overall|acc", "*|acc", "*|score"),
}


def _undeclared_metric(host: str, task: str, of_checkpoints: Sequence[Metrics]) -> str | None:
    """The only metric of a task, else the first usual one; None where nobody can tell."""
    names = {metric for metrics in of_checkpoints for metric in metrics}
    if len(names) == 1:
        return next(iter(names))
    for metric in USUAL_METRICS.get(host, ()):
        if any(_headlines_of(metrics, [(_ANY, Headline(host, (task,), metric))]) for metrics in of_checkpoints):
            return metric
    return None


def _several_metrics(host: str, task: str, of_checkpoints: Sequence[Metrics]) -> Problem:
    names = sorted({metric for metrics in of_checkpoints for metric in metrics})
    what = f"{task} has no declared headline and several metrics ({', '.join(names)}); not shown"
    return Problem("note", "missing", host, what, "Name one under `define:` in the report's configuration.")


def _headlines_of(metrics: Metrics, wanted: Wanted) -> list[tuple[Benchmark, Headline, Score]]:
    found: dict[str, tuple[Benchmark, Headline, Score]] = {}
    for benchmark, headline in wanted:
        if headline.host == TABLE:
            parts = list(metrics.values())[:1]
        else:
            names = [_metric_of(headline.host, metric, metrics) for metric in headline.metrics]
            parts = [metrics[name] for name in names if name is not None]
            if len(parts) < len(names):
                continue
        if parts:
            found.setdefault(benchmark.key, (benchmark, headline, _mean(parts)))
    return list(found.values())


def _mean(parts: Sequence[Score]) -> Score:
    if len(parts) == 1:
        return parts[0]
    value = sum(part.value for part in parts) / len(parts)
    return replace(parts[0], value=value, metric=f"mean of {', '.join(part.metric for part in parts)}")


def _metric_of(host: str, wanted: str, metrics: Metrics) -> str | None:
    """The metric that a headline means, or None.

    lmms-eval appends ``,filter``: "none" where nothing was filtered. In VLMEvalKit ``*`` stands for the split that
    covers the whole data set, or for the only one.
    """
    if wanted in metrics:
        return wanted
    if host == VLMEVALKIT:
        if not wanted.startswith("*|"):
            return None
        column = wanted[2:]
        fitting = [metric for metric in metrics if metric.split("|", 1)[-1] == column]
        whole = (f"{split}|{column}" for split in WHOLE_SPLITS)
        return next((metric for metric in whole if metric in metrics), fitting[0] if len(fitting) == 1 else None)
    filtered = sorted(metric for metric in metrics if metric.rsplit(",", 1)[0] == wanted)
    unfiltered = f"{wanted},none"
    if unfiltered in filtered:
        return unfiltered
    values = {metrics[name].value for name in filtered}
    return filtered[0] if len(values) == 1 else None  # of filters that disagree, nobody said which counts


def _entry(checkpoint: Checkpoint, benchmark: Benchmark, headline: Headline, score: Score) -> ScoreEntry:
    return ScoreEntry(
        name=checkpoint.name,
        identity=checkpoint.identity,
        benchmark=benchmark.key,
        value=score.value * headline.factor,
        raw_value=score.value,
        host=score.host,
        task=score.task,
        metric=score.metric,
        complete=score.complete,
        used=False,
        n_samples=score.n_samples,
        date=score.date,
        run_id=score.run_id,
    )


def _choose(entries: Sequence[ScoreEntry]) -> tuple[list[ScoreEntry], list[Problem]]:
    support = Counter(
        (benchmark, host, task)
        for benchmark, host, task, _ in {(e.benchmark, e.host, e.task, e.identity) for e in entries}
    )
    rivals: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        rivals[entry.identity, entry.benchmark].append(index)

    def preference(index: int) -> tuple[bool, int, str, str]:
        entry = entries[index]
        return entry.complete, support[entry.benchmark, entry.host, entry.task], entry.date, entry.run_id

    chosen = list(entries)
    problems = []
    for indices in rivals.values():
        best = max(indices, key=preference)
        equal = [i for i in indices if preference(i)[:2] == preference(best)[:2]]
        if len({_tree(entries[i]) for i in equal}) > 1 and len({entries[i].value for i in equal}) > 1:
            problems.append(_several_trees([entries[i] for i in equal]))
            continue
        chosen[best] = replace(entries[best], used=True)
        if len(indices) > 1:
            problems.append(_superseded(chosen[best], [entries[i] for i in indices if i != best]))
    return chosen, problems


def _off_scale(benchmark: Benchmark, entry: ScoreEntry) -> Problem:
    highest = "100 %" if benchmark.unit == "percent" else f"{benchmark.points:g} points"
    what = (
        f"{benchmark.name} would be {entry.value:g} ({entry.host} {entry.task}, {entry.run_id}); it has 0 to {highest}"
    )
    return Problem("error", "unreadable", entry.name, what, "Not shown. Correct the table, or evaluate again.")


def _tree(entry: ScoreEntry) -> str:
    """The folder of VLMEvalKit's model that a score is from; empty for other hosts, whose files say what they measured.

    Runs in one such folder follow each other. Two folders of one name may be two checkpoints: the trees record no path.
    """
    if entry.host != VLMEVALKIT:
        return ""
    folder = Path(entry.run_id)
    return str(folder.parent if RUN_DIR.match(folder.name) else folder)


def _several_trees(entries: Sequence[ScoreEntry]) -> Problem:
    found = ", ".join(f"{entry.value:.2f} ({_tree(entry)})" for entry in entries)
    what = f"{entries[0].benchmark}: {found}: several trees have a model of this name, and nothing says which is meant"
    remedy = "Not shown. Report one tree at a time, or rename the model's folder in one of them."
    return Problem("warning", "incomparable", entries[0].name, what, remedy)


def _superseded(used: ScoreEntry, others: Sequence[ScoreEntry]) -> Problem:
    dropped = ", ".join(map(_described, others))
    what = f"{used.benchmark}: {len(others) + 1} results; used {_described(used)}, not {dropped}"
    return Problem("note", "superseded", used.name, what)


def _described(entry: ScoreEntry) -> str:
    extent = "complete" if entry.complete else "partial"
    return f"{entry.value:.2f} ({entry.host} {entry.task}, {extent}, {entry.date or 'no date'})"
