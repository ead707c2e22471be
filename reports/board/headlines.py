"""From all scores that were read to the one score per checkpoint and benchmark that a board shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mir_plugin.reports.board.board import ScoreEntry
from mir_plugin.reports.board.checkpoints import Checkpoint
from mir_plugin.reports.read.benchmarks import (
    TABLE,
    VLMEVALKIT,
    Benchmark,
    Headline,
    find_column,
    find_headlines,
)
from mir_plugin.reports.read.records import Problem, Score

# Splits that stand for the whole of a VLMEvalKit data set, in the order in which they are preferred.
WHOLE_SPLITS = ("none", "Overall")


def headline_entries(
    scores: Iterable[tuple[Checkpoint, Score]], benchmarks: Sequence[Benchmark]
) -> tuple[list[ScoreEntry], list[Problem]]:
    """Headline scores of all runs, with those marked that a board uses; and what could not be used or was superseded.

    For each checkpoint and benchmark a complete run beats a partial one, the host and task that most checkpoints have
    beat the others (their prompts differ), and then the newest wins.
    """
    # With the date: rows of one table may tell of several.
    tasks: dict[tuple[Checkpoint, str, str, str, str], dict[str, Score]] = defaultdict(dict)
    for checkpoint, score in scores:
        tasks[checkpoint, score.run_id, score.host, score.task, score.date][score.metric] = score
    entries: list[ScoreEntry] = []
    unknown: Counter[tuple[str, str]] = Counter()
    problems: list[Problem] = []
    wanted: dict[tuple[str, str], Sequence[tuple[Benchmark, Headline]]] = {}
    for (checkpoint, _, host, task, _), metrics in tasks.items():
        if (host, task) not in wanted:
            wanted[host, task] = _wanted(host, task, benchmarks)
        found = _headlines_of(metrics, wanted[host, task])
        for benchmark, headline, score in found:
            entry = _entry(checkpoint, benchmark, headline, score)
            if benchmark.can_be(entry.value):
                entries.append(entry)
            else:
                problems.append(_off_scale(benchmark, entry))
        if not wanted[host, task]:
            unknown[host, task] += 1
        elif not found:
            needed = ", ".join(dict.fromkeys(headline.metric for _, headline in wanted[host, task]))
            what = f"{task} has no {needed}; it has {', '.join(sorted(metrics))}"
            problems.append(Problem("warning", "missing", checkpoint.name, what, "Declare its metric under `define:`."))
    problems += [_unknown_task(host, task, count) for (host, task), count in sorted(unknown.items())]
    chosen, superseded = _choose(entries)
    return chosen, problems + superseded


def _wanted(host: str, task: str, benchmarks: Sequence[Benchmark]) -> Sequence[tuple[Benchmark, Headline]]:
    if host != TABLE:
        return find_headlines(host, task, benchmarks)
    benchmark = find_column(task, benchmarks)
    return [(benchmark, Headline(TABLE, (task,), task, 1.0))] if benchmark else []


def _headlines_of(
    metrics: Mapping[str, Score], wanted: Sequence[tuple[Benchmark, Headline]]
) -> list[tuple[Benchmark, Headline, Score]]:
    found: dict[str, tuple[Benchmark, Headline, Score]] = {}
    for benchmark, headline in wanted:
        metric = _metric_of(headline, metrics)
        if metric is not None:
            found.setdefault(benchmark.key, (benchmark, headline, metrics[metric]))
    return list(found.values())


def _metric_of(headline: Headline, metrics: Mapping[str, Score]) -> str | None:
    """The metric that a headline means, or None.

    lmms-eval appends ``,filter``: "none" where nothing was filtered. In VLMEvalKit ``*`` stands for the split that
    covers the whole data set, or for the only one.
    """
    if headline.metric in metrics:
        return headline.metric
    if headline.host == VLMEVALKIT:
        if not headline.metric.startswith("*|"):
            return None
        column = headline.metric[2:]
        fitting = [metric for metric in metrics if metric.split("|", 1)[-1] == column]
        whole = (f"{split}|{column}" for split in WHOLE_SPLITS)
        return next((metric for metric in whole if metric in metrics), fitting[0] if len(fitting) == 1 else None)
    filtered = sorted(metric for metric in metrics if metric.rsplit(",", 1)[0] == headline.metric)
    unfiltered = f"{headline.metric},none"
    return unfiltered if unfiltered in filtered else next(iter(filtered), None)


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
        chosen[best] = replace(entries[best], used=True)
        if len(indices) > 1:
            problems.append(_superseded(chosen[best], [entries[i] for i in indices if i != best]))
    return chosen, problems


def _off_scale(benchmark: Benchmark, entry: ScoreEntry) -> Problem:
    highest = "100 %" if benchmark.unit == "percent" else f"{benchmark.points} points"
    what = (
        f"{benchmark.name} would be {entry.value:g} ({entry.host} {entry.task}, {entry.run_id}); it has 0 to {highest}"
    )
    return Problem("error", "unreadable", entry.name, what, "Not shown. Correct the table, or evaluate again.")


def _superseded(used: ScoreEntry, others: Sequence[ScoreEntry]) -> Problem:
    dropped = ", ".join(map(_described, others))
    what = f"{used.benchmark}: {len(others) + 1} results; used {_described(used)}, not {dropped}"
    return Problem("note", "superseded", used.name, what)


def _described(entry: ScoreEntry) -> str:
    extent = "complete" if entry.complete else "partial"
    return f"{entry.value:.2f} ({entry.host} {entry.task}, {extent}, {entry.date or 'no date'})"


def _unknown_task(host: str, task: str, count: int) -> Problem:
    what = f"{task} has scores of {count} checkpoint{'s' if count > 1 else ''}, but no declared headline; not shown"
    return Problem("note", "missing", host, what, "Declare it under `define:` in the report's configuration.")
