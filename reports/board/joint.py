"""Joins MIR measurements and benchmark scores of the same checkpoints into a Board."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mir_plugin.files.redaction import without_secrets
from mir_plugin.measurement.checkpoint_names import run_of, step_in_name
from mir_plugin.measurement.diagnostics import fragile_values
from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    BoardRow,
    Cohort,
    Correlation,
    ScoreEntry,
)
from mir_plugin.reports.board.checkpoints import Checkpoint, Checkpoints, find_checkpoints
from mir_plugin.reports.board.cohorts import choose_measurements, cohort_warnings, prepared_differently
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.correlation import correlate, with_holm
from mir_plugin.reports.board.headlines import headline_entries
from mir_plugin.reports.read.benchmarks import AVERAGE_SETS, OWN_AVERAGE, TABLE, Benchmark, weighted_average
from mir_plugin.reports.read.identity import VLMEVALKIT_MODEL
from mir_plugin.reports.read.records import (
    Measurement,
    ParsedSources,
    Picture,
    Problem,
)

SEVERITY_ORDER = ("error", "warning", "note")
N_LISTED = 8  # names in one message


def join(parsed: ParsedSources, config: ReportConfig | None = None) -> Board:
    """Everything that was read, one row per checkpoint.

    Records belong to one checkpoint when they share a path, a name as given to the host tool, a weights fingerprint,
    or a ``match`` list of the configuration; display names play no part.

    Raises:
        MirError: if the configuration gives one name to two checkpoints.
    """
    config = config or ReportConfig()
    checkpoints = find_checkpoints(parsed, config)
    scored = [
        (checkpoints.of(score.checkpoint), score)
        for score in parsed.scores
        if checkpoints.scores_count(score.checkpoint)
    ]
    headlines = headline_entries(scored, config.benchmarks)
    entries = headlines.entries
    measured: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in filter(lambda one: checkpoints.mir_counts(one.checkpoint), parsed.measurements):
        measured[checkpoints.of(measurement.checkpoint).identity].append(measurement)
    by_identity = {checkpoint.identity: checkpoint for checkpoint in checkpoints.by_key.values()}
    chosen, cohorts, cohort_problems = choose_measurements(measured, {i: c.name for i, c in by_identity.items()})

    shown = shown_benchmarks(entries, config, headlines.undeclared)
    scores = _used_scores(entries, shown)
    weights = config.average_weights
    sources = _sources(entries, chosen.items())
    rows = ranked(
        (
            _row(checkpoint, chosen.get(identity), cohorts, scores.get(identity, {}), weights, shown, sources[identity])
            for identity, checkpoint in by_identity.items()
        ),
        cohorts,
    )
    problems = (
        *parsed.problems,
        *checkpoints.problems,
        *_left_out_by_links(parsed, checkpoints),
        *cohort_problems,
        *prepared_differently(chosen, {identity: one.name for identity, one in by_identity.items()}),
        *unmatched(rows),
        *_without_average(rows, weights, config.benchmarks),
        *headlines.problems,
    )
    return Board(
        title=config.title,
        rows=rows,
        benchmarks=shown,
        weights=weights,
        average_set=OWN_AVERAGE if config.weights else config.average.name,
        average_title="" if config.weights else config.average.title,
        absent=_absent(weights, shown, config.benchmarks),
        cohorts=cohorts,
        warnings=(
            *cohort_warnings(cohorts),
            *config.notes,
            *_score_warnings(entries, shown),
            *fragile_values([(row.name, row.fragile) for row in rows]),
        ),
        correlations=correlations(rows, cohorts, shown),
        entries=tuple(sorted(entries, key=lambda e: (e.name, e.benchmark, not e.used, e.date))),
        runs=tuple(sorted(parsed.runs, key=lambda run: (run.checkpoint, run.date, run.source))),
        problems=tuple(sorted(map(_redacted, problems), key=lambda problem: SEVERITY_ORDER.index(problem.severity))),
        pictures=tuple(_titled(picture, checkpoints.by_key) for picture in parsed.pictures),
        robustness=parsed.robustness,
        verdicts=parsed.verdicts,
    )


def _left_out_by_links(parsed: ParsedSources, checkpoints: Checkpoints) -> list[Problem]:
    """The MIR of fine-tuned models and the scores of pre-trained ones, which a linked row does not show."""
    problems = []
    for numbers, counts, references in (
        ("MIR", checkpoints.mir_counts, [one.checkpoint for one in parsed.measurements]),
        ("scores", checkpoints.scores_count, [one.checkpoint for one in parsed.scores]),
    ):
        for reference in dict.fromkeys(one for one in references if not counts(one)):
            stage = "before" if numbers == "MIR" else "after"
            what = f"{reference.label} has {numbers} of its own, not shown: the row has {numbers} {stage} fine-tuning"
            name = checkpoints.of(reference).name
            problems.append(Problem("note", "linked", name, what, "To see them, report without the link."))
    return problems


def _redacted(problem: Problem) -> Problem:
    """Without the keys that other programs repeat in their error texts ("Incorrect API key provided: sk-…")."""
    return replace(problem, where=without_secrets(problem.where), what=without_secrets(problem.what))


def _titled(picture: Picture, by_key: Mapping[str, Checkpoint]) -> Picture:
    """The picture under the display name of its checkpoint, where the report knows it."""
    name = next((by_key[key].name for key in picture.keys if key in by_key), picture.title)
    return replace(picture, title=name)


def shown_benchmarks(
    entries: Iterable[ScoreEntry], config: ReportConfig, undeclared: Sequence[Benchmark] = ()
) -> tuple[Benchmark, ...]:
    """The configured benchmarks in their order, else all that have a score, in the declared order; undeclared last."""
    by_key = {benchmark.key: benchmark for benchmark in (*config.benchmarks, *undeclared)}
    present = {entry.benchmark for entry in entries}
    return tuple(by_key[key] for key in config.shown or by_key if key in present)


def _absent(
    weights: Mapping[str, float], shown: Sequence[Benchmark], known: Sequence[Benchmark]
) -> tuple[Benchmark, ...]:
    """Benchmarks of the average that no checkpoint has."""
    present = {benchmark.key for benchmark in shown}
    return tuple(one for one in known if weights.get(one.key, 0) > 0 and one.key not in present)


def _used_scores(entries: Iterable[ScoreEntry], shown: Sequence[Benchmark]) -> dict[str, dict[str, float]]:
    keys = {benchmark.key for benchmark in shown}
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for entry in entries:
        if entry.used and entry.benchmark in keys:
            scores[entry.identity][entry.benchmark] = entry.value
    return dict(scores)


def _sources(
    entries: Iterable[ScoreEntry], chosen: Iterable[tuple[str, Measurement]]
) -> defaultdict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for identity, measurement in chosen:
        found[identity][measurement.run_id] = None
    for entry in entries:
        if entry.used:
            found[entry.identity][entry.run_id] = None
    return defaultdict(tuple, {identity: tuple(runs) for identity, runs in found.items()})


def _run_name(checkpoint: Checkpoint) -> str:
    """The last part of the run's path; empty where no step says that the checkpoint is one of a run."""
    path = PurePosixPath(checkpoint.identity)
    return PurePosixPath(run_of(Path(checkpoint.identity))).name if step_in_name(path.name) is not None else ""


def _row(
    checkpoint: Checkpoint,
    measurement: Measurement | None,
    cohorts: Sequence[Cohort],
    scores: Mapping[str, float],
    weights: Mapping[str, float],
    shown: Sequence[Benchmark],
    sources: tuple[str, ...],
) -> BoardRow:
    row = BoardRow(
        identity=checkpoint.identity,
        name=checkpoint.name,
        group=checkpoint.group,
        scores=scores,
        average=weighted_average(scores, weights, shown),
        step=checkpoint.step,
        run=_run_name(checkpoint),
        finetuned=checkpoint.finetuned,
        sources=sources,
    )
    if measurement is None:
        return row
    return replace(
        row,
        cohort=next(cohort.name for cohort in cohorts if cohort.comparability == measurement.comparability),
        mir=measurement.mir,
        mir_published=measurement.mir_published,
        mir_published_upper=measurement.mir_published_upper,
        mir_standard_error=measurement.mir_standard_error,
        mir_interval=measurement.mir_interval,
        mir_at_equal_length=measurement.mir_at_equal_length,
        length_share=measurement.length_share,
        fragile=measurement.fragile,
        n_samples=measurement.n_samples,
        layers=measurement.layers,
        result=measurement.result,
    )


def ranked(rows: Iterable[BoardRow], cohorts: Sequence[Cohort]) -> tuple[BoardRow, ...]:
    """Rows in reading order, each with its rank inside its cohort; equal MIR values share a rank."""
    order = {cohort.name: index for index, cohort in enumerate(cohorts)}
    listed = sorted(rows, key=lambda row: (order.get(row.cohort, len(order)), *_best_first(row)))
    n_better: dict[str, int] = defaultdict(int)
    last: dict[str, BoardRow] = {}
    result = []
    for row in listed:
        if row.mir is not None:
            n_better[row.cohort] += 1
            before = last.get(row.cohort)
            same = before is not None and before.mir == row.mir
            row = replace(row, rank=before.rank if before is not None and same else n_better[row.cohort])
            last[row.cohort] = row
        result.append(row)
    return tuple(result)


def _best_first(row: BoardRow) -> tuple[float, float, str]:
    return (
        row.mir if row.mir is not None else float("inf"),
        -row.average if row.average is not None else float("inf"),
        row.name,
    )


def correlations(
    rows: Sequence[BoardRow], cohorts: Sequence[Cohort], shown: Sequence[Benchmark]
) -> tuple[Correlation, ...]:
    """MIR against the average and every benchmark: for each cohort, and for each of its groups if there are several."""
    scopes: list[tuple[str, list[BoardRow]]] = []
    for cohort in cohorts:
        members = [row for row in rows if row.cohort == cohort.name]
        groups = sorted({row.group for row in members if row.group})
        scopes.append((cohort.name, members))
        if len(groups) > 1:
            scopes += [(f"{cohort.name} / {group}", [row for row in members if row.group == group]) for group in groups]
    wanted = [
        (scope, key, [(row.mir, value) for row in members if (value := score_of(row, key)) is not None])
        for scope, members in scopes
        for key in (AVERAGE, *(benchmark.key for benchmark in shown))
    ]
    found = []
    for scope, key, pairs in tqdm(wanted, desc="correlating", unit="pair", disable=None, leave=False):
        if len(pairs) > 1:
            found.append(correlate(scope, key, [float(mir or 0) for mir, _ in pairs], [value for _, value in pairs]))
    return tuple(with_holm(found))


def score_of(row: BoardRow, column: str) -> float | None:
    """The row's value of a benchmark, or of ``AVERAGE``; None where it has none."""
    return row.average if column == AVERAGE else row.scores.get(column)


def unmatched(rows: Sequence[BoardRow]) -> list[Problem]:
    """Checkpoints that have only a MIR, or only scores, with the names on the other side that look alike.

    Nobody evaluates every checkpoint, so what is missing is no warning; two spellings of one name are.
    """
    without_scores = {row.name: row for row in rows if not row.scores}
    without_mir = {row.name: row for row in rows if row.mir is None}
    if rows and len(without_mir) == len(rows):
        return [Problem("warning", "missing", "report", "no MIR was found in the sources", "Run `mir run`.")]
    problems = []
    for here, there, lacking, what_to_do in (
        (without_scores, without_mir, "no score", "Evaluate them, or name their results among the sources."),
        (without_mir, without_scores, "no MIR", "Measure them with `mir run`, or name their mir.json files."),
    ):
        alike = {_letters_of(row): row for row in there.values()}
        twins = {name: twin for name, row in here.items() if (twin := alike.get(_letters_of(row)))}
        for name, twin in twins.items():
            what = f"has {lacking}; {twin.name} ({twin.identity}) looks alike ({here[name].identity})"
            join = "If that is this checkpoint under another name, put both under one `match:` list."
            problems.append(Problem("warning", "unmatched", name, what, join))
        rest = [name for name in here if name not in twins]
        if rest and len(rest) < len(rows):
            listed = ", ".join(rest[:N_LISTED]) + (", …" if len(rest) > N_LISTED else "")
            what = f"{len(rest)} of {len(rows)} checkpoints {'has' if len(rest) == 1 else 'have'} {lacking}: {listed}"
            problems.append(Problem("note", "unmatched", "report", what, what_to_do))
    return problems


def _letters_of(row: BoardRow) -> str:
    """Letters and digits of the last part of a checkpoint's path: what two spellings of one name have in common."""
    name = PurePosixPath(row.identity.removeprefix(VLMEVALKIT_MODEL)).name
    return "".join(filter(str.isalnum, name.casefold()))


def _without_average(
    rows: Sequence[BoardRow], weights: Mapping[str, float], known: Sequence[Benchmark]
) -> list[Problem]:
    """Which checkpoints with scores have no average, and what they lack; what all of them lack is told once."""
    names = {one.key: one.name for one in known if weights.get(one.key, 0) > 0}
    scored = [row for row in rows if row.scores]
    absent = [name for key, name in names.items() if not any(key in row.scores for row in scored)]
    if scored and absent:
        what = f"no average: no checkpoint has {', '.join(absent)}"
        shared = [one.key for one in known if one.averaged and all(one.key in row.scores for row in scored)]
        own = ",".join(shared) if len(shared) > 1 else "KEY,KEY,…"
        remedy = f"Evaluate, or choose what the average is over: --average {', '.join(AVERAGE_SETS)} or {own}"
        return [Problem("note", "missing", "report", what, remedy)]
    problems = []
    for row in scored:
        lacking = [name for key, name in names.items() if key not in row.scores]
        if lacking:
            what = f"no average: it lacks {', '.join(lacking)}"
            problems.append(Problem("note", "missing", row.name, what, "Evaluate it there, or average without."))
    return problems


def _score_warnings(entries: Sequence[ScoreEntry], shown: Sequence[Benchmark]) -> list[str]:
    warnings = []
    partial = sum(entry.used and not entry.complete for entry in entries)
    if partial:
        warnings.append(
            f"{partial} of the scores shown come from partial runs (a limit was set); the page and the Scores sheet "
            "mark them."
        )
    for benchmark in shown:
        kinds = Counter((e.host, e.task) for e in entries if e.used and e.benchmark == benchmark.key)
        tasks = {(host, task) for host, task in kinds if host != TABLE}
        if len(tasks) > 1 or len({host for host, _ in kinds}) > 1:
            listed = ", ".join(f"{count} from {host} {task}" for (host, task), count in kinds.most_common())
            warnings.append(f"{benchmark.name} mixes sources whose prompts and answer matching differ: {listed}.")
    return warnings
