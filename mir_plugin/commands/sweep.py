"""``mir sweep``: many checkpoints, one after another → a table, the verdict, and the joint report."""

from __future__ import annotations

import json as json_module
import os
import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands import options
from mir_plugin.commands.subcommand import INTERRUPTED, SOME_FAILED, verdict_code
from mir_plugin.errors import MirError
from mir_plugin.metric.uncertainty import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mir_plugin.processes import Group
    from mir_plugin.selection.checkpoint_watcher import CheckpointWatcher
    from mir_plugin.selection.ray_options import RayOptions
    from mir_plugin.selection.ray_sweep import RaySweep
    from mir_plugin.selection.shards import Shard
    from mir_plugin.selection.sweep import Sweep
    from mir_plugin.selection.sweep_measuring import SweepMeasuring

WATCHING = "Watching"
INDICATORS = "Indicators"
SEVERAL = "Several machines"


def sweep(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint folders, or patterns such as 'runs/*/checkpoint-*'.")
    ] = None,
    *,
    load: options.Load,
    samples: options.Samples,
    protocol: options.Protocol,
    precision: options.Precision = None,
    batch_size: options.BatchSize = None,
    ray: options.Ray = None,
    indicators: Annotated[
        bool,
        typer.Option(
            "--indicators",
            help="Also compute the indicators of `mir indicators`, as extra columns.",
            rich_help_panel=INDICATORS,
        ),
    ] = False,
    n_questions: Annotated[
        int,
        typer.Option(min=0, help="In-context questions with --indicators; 0 skips them.", rich_help_panel=INDICATORS),
    ] = options.N_QUESTIONS,
    tolerance: options.Tolerance = TOLERANCE,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Output folder of a training: measure its checkpoints (checkpoint-200, step-200, ...) as they are "
            "completed, until Ctrl-C or SIGTERM.",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    watch_idle: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this many seconds without a new checkpoint.", rich_help_panel=WATCHING),
    ] = None,
    watch_settle: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds without change after which a checkpoint is complete.", rich_help_panel=WATCHING
        ),
    ] = 5.0,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Measure the I-th of N shares of the checkpoints; all tasks write to one --out. Default: that of the "
            "task of a Slurm job array (SLURM_ARRAY_TASK_ID and _COUNT), else all.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be measured, how long it takes and how much memory, and measure nothing."
        ),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="Also log to a tracker of accelerate: wandb, tensorboard, mlflow or trackio; MIR against the step.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results, table and report.", rich_help_panel=options.OUTPUT)
    ] = Path("mir-sweep"),
    force: options.Force = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="Write the workbook and page of `mir report`.", rich_help_panel=options.OUTPUT
        ),
    ] = True,
    json: options.Json = False,
) -> None:
    """Measure many checkpoints on the same samples, and say which one to fine-tune.

    What the checkpoints share (base LLM, vision tower, image features) is loaded and computed once; every number is
    that of a single `mir run`. A failed checkpoint is reported and the others are still measured. A killed sweep
    resumes where it stopped.

    Examples:

      mir sweep 'runs/pretrain/checkpoint-*' --base-llm vicuna-7b-v1.5

      mir sweep --watch runs/pretrain --base-llm vicuna-7b-v1.5

      mir sweep 'runs/*/checkpoint-*' --precision 0.01

      mir sweep 'runs/*/checkpoint-*' --ray --gpus-per-checkpoint 0.5

      mir sweep runs/pretrain --base-llm vicuna-7b-v1.5 --dry-run

    Exit codes: those of `mir select` (0 a clear recommendation, or one result; 3 undecided; 4 MIR is still falling at
    the last step; 1 nothing could be measured, or results cannot be compared); 5 some checkpoints failed; 130
    interrupted. Under a launcher such as torchrun, and for a shard, 3 and 4 are 0.
    """
    from mir_plugin.commands.sweep_table import SweepDisplay, print_sweep
    from mir_plugin.measurement.growing import NestedSamples
    from mir_plugin.measurement.measurement import lock
    from mir_plugin.model_adapters import adapter_spec
    from mir_plugin.processes import launched_group
    from mir_plugin.selection.candidates import found_checkpoints
    from mir_plugin.selection.checkpoint_watcher import CheckpointWatcher
    from mir_plugin.selection.sweep import Sweep
    from mir_plugin.selection.sweep_log import TrackedSweep, tracker_named
    from mir_plugin.selection.sweep_measuring import SweepMeasuring

    if bool(checkpoints) == (watch is not None):
        raise MirError("give either checkpoints or --watch with the output folder of a training.")
    if load.family:  # a mistaken name is reported before samples are fetched
        adapter_spec(load.family)
    folders = found_checkpoints(checkpoints or [])
    share = _share(shard, watching=watch is not None)
    tracker = tracker_named(log) if log else None
    if share and ray:
        raise MirError("--ray divides the checkpoints itself; leave out --shard, or add --shard 1/1 in a Slurm array.")
    if share and precision is not None:
        raise MirError(
            "--precision compares all checkpoints with each other; leave out --precision or --shard, or add "
            "--shard 1/1 in a Slurm array."
        )
    watcher = None
    if watch:
        watcher = CheckpointWatcher(watch, watch_settle, has_base=load.base is not None, unpickle=load.unpickle)
    chosen = samples.choose()
    nested = None if precision is None else NestedSamples(chosen, precision)
    fingerprint = nested.first(nested.planned[0]).fingerprint if nested else chosen.fingerprint
    interrupted = False
    with launched_group(load.device) as group, ExitStack() as stack:
        measuring = SweepMeasuring(
            load,
            chosen,
            protocol,
            batch_size=batch_size,
            force=force,
            group=group,
            n_questions=n_questions if indicators else None,
            nested=nested,
        )
        cluster = stack.enter_context(_on_ray(ray, measuring, group)) if ray else None
        display = SweepDisplay(shown=group.rank == 0, watching=watch is not None)
        tracked = TrackedSweep(tracker, out, {"samples": chosen.fingerprint}) if tracker and group.rank == 0 else None
        running = Sweep(
            out,
            measuring,
            further=measuring.further(tolerance) if nested else None,
            tolerance=tolerance,
            on_change=display.refresh,
            on_finished=lambda entry: tracked.log(entry, running.n_runs) if tracked else None,
            writes=group.rank == 0 and not dry_run,
            share=share.folder(out) if share else None,
        )
        if dry_run:
            running.recall(fingerprint, protocol, measuring.loading)
            running.add(folders)
            _tell_plan(running, measuring, json=json)
            return
        is_last = True
        try:
            with lock(share.folder(out) if share else out, group), display.of(running):
                left_out = [] if share else running.recall(fingerprint, protocol, (cluster or measuring).loading)
                if share:
                    is_last = _measure_share(running, share, folders, group)
                    if is_last:
                        running.take_over(fingerprint, protocol, measuring.loading, share.tables(out))
                elif watch is not None and watcher is not None:
                    _tell_left_out(_gone(left_out, watch) if group.rank == 0 else [])
                    try:
                        with _ended_by_kill():
                            _follow(running, watcher, watch_settle, watch_idle, group, cluster)
                    finally:
                        running.leave_out(watcher.unfinished() if group.rank == 0 else {})
                else:
                    running.add(group.broadcast(folders))
                    display.announce()
                    cluster.run(running) if cluster else running.run()
        except KeyboardInterrupt:
            interrupted = watch is None  # a watch is ended like this
        finally:
            if tracked:
                tracked.finish()
    if group.rank > 0:
        return
    if share and (interrupted or not is_last):
        _tell_share(running, share)
        raise typer.Exit(INTERRUPTED if interrupted else _failures(running))
    report_paths = _report(running) if report else []
    if json:
        typer.echo(json_module.dumps(running.as_json(), indent=2, allow_nan=False))
    else:
        print_sweep(running, report_paths)
    if watch and not running.entries:
        note = f"mir: nothing was measured: no folder below {watch} is named after a step (checkpoint-200, step-200)."
        typer.echo(note, err=True)
    code = _exit_code(running, only_failures=group.size > 1 or share is not None)
    if interrupted or code:
        raise typer.Exit(INTERRUPTED if interrupted else code)


def _share(text: str | None, *, watching: bool) -> Shard | None:
    """The share that was asked for, or that of a Slurm array's task; None for all."""
    from mir_plugin.selection.shards import parsed_shard, shard_of_array_task

    if text is not None and watching:
        raise MirError("--watch measures all that lands; leave out --shard.")
    if watching:
        return None
    share = parsed_shard(text) if text else shard_of_array_task(os.environ)
    if share is None or share.n == 1:
        return None
    if text is None:
        note = (
            f"mir: task {share.number} of {share.n} of a Slurm array: measuring its share (--shard 1/1 measures all)."
        )
        typer.echo(note, err=True)
    return share


def _measure_share(running: Sweep, share: Shard, folders: list[Path], group: Group) -> bool:
    """Measure one share; whether all others have finished. Collective."""
    running.add(group.broadcast(folders))
    own: dict[Path, str] = {}
    with group.agreed("dividing the checkpoints"):
        if group.rank == 0:
            share.start(running.out_dir)
            entries = [one for one in running.entries if one.asked]
            own = share.planned(running.out_dir, [e.checkpoint for e in entries], [e.name for e in entries])
    running.keep_only(group.broadcast(own))
    running.run()
    return group.rank > 0 or share.finish(running.out_dir)


def _tell_share(running: Sweep, share: Shard) -> None:
    n, n_done = len(running.entries), sum(one.is_done for one in running.entries)
    typer.echo(f"share {share.number} of {share.n}: {n_done} of {n} checkpoints done")
    typer.echo(f"the last task to finish gives the verdict; at any time: mir select {running.out_dir}")


def _failures(running: Sweep) -> int:
    return SOME_FAILED if any(one.state == "failed" and one.asked for one in running.entries) else 0


def _tell_plan(running: Sweep, measuring: SweepMeasuring, *, json: bool) -> None:
    from mir_plugin.commands.sweep_table import print_plan
    from mir_plugin.selection.dry_run import as_json, planned

    plan = planned(running, measuring)
    if json:
        typer.echo(json_module.dumps(as_json(plan), indent=2, allow_nan=False))
    else:
        print_plan(plan)


@contextmanager
def _ended_by_kill() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, which programs started by a script with & do not receive."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_ray(wanted: RayOptions, measuring: SweepMeasuring, group: Group) -> RaySweep:
    """The workers; refused where a launcher has started several processes for one checkpoint."""
    from mir_plugin.selection.ray_sweep import RaySweep

    if group.size > 1:
        raise MirError("--ray starts its own processes; run the command alone, without torchrun or accelerate.")
    return RaySweep(wanted, measuring)


def _follow(
    running: Sweep,
    watcher: CheckpointWatcher,
    settle: float,
    idle: float | None,
    group: Group,
    cluster: RaySweep | None = None,
) -> None:
    """Measure what lands, until the watch ends; process 0 looks, and all measure.

    Workers of a cluster go on measuring while it looks.
    """
    poll = max(settle / 2, 0.2)
    if cluster:
        for found in watcher.rounds(poll, idle, busy=lambda: cluster.is_busy or bool(running.waiting())):
            _tell_news(watcher)
            if found:
                running.add(found)
            cluster.step(running, 0)
        return
    rounds = watcher.rounds(poll, idle) if group.rank == 0 else None
    while (landed := group.broadcast(next(rounds, None) if rounds else None)) is not None:
        _tell_news(watcher)
        if landed:
            running.add(landed)
            running.run()


def _tell_news(watcher: CheckpointWatcher) -> None:
    """Say what checkpoints that have stopped changing still lack; of processes that do not look there is no news."""
    for checkpoint, lacks in watcher.news().items():
        typer.echo(f"mir: {checkpoint}: waiting: {lacks}", err=True)


def _gone(results: list[Path], below: Path) -> list[Path]:
    """Those of checkpoints that the training below a folder has deleted."""
    from mir_plugin.results import MirResult

    places = {path: Path((one := MirResult.load(path)).place or one.checkpoint) for path in results}
    return [
        path
        for path, place in places.items()
        if not place.exists() and place.absolute().is_relative_to(below.resolve())
    ]


def _tell_left_out(results: list[Path]) -> None:
    for path in results:
        note = f"mir: {path} is left out: its checkpoint is gone, and it was loaded or measured with other options."
        typer.echo(note, err=True)


def _report(running: Sweep) -> list[Path]:
    """Write the report of all results; no files without a result."""
    from mir_plugin.files.atomic import write_atomically
    from mir_plugin.indicators.indicators import DESCRIPTIONS, HIGHER_IS_BETTER
    from mir_plugin.reports.board.config import ReportConfig
    from mir_plugin.reports.build import build_report
    from mir_plugin.reports.view.indicator_columns import indicator_table, with_indicators
    from mir_plugin.results import RESULT_NAME

    sources = [running.out_dir / entry.name / RESULT_NAME for entry in running.entries if entry.result]
    if not sources:
        return []
    sources.append(running.out_dir / "sweep.json")  # the verdict
    recorded = {str(one.checkpoint): one.indicators for one in running.entries if one.indicators}
    if recorded:
        sources.append(running.out_dir / "indicators.csv")
        write_atomically(sources[-1], indicator_table(recorded))
    config = ReportConfig(benchmarks=with_indicators(DESCRIPTIONS, HIGHER_IS_BETTER))
    return list(build_report(sources, running.out_dir / "report", config).paths.values())


def _exit_code(running: Sweep, *, only_failures: bool) -> int:
    """Of the verdict, unless ``only_failures`` count: launchers take any code but 0 for a crash."""
    if not any(entry.result for entry in running.entries):
        return 1
    if failed := _failures(running):
        return failed
    if only_failures:
        return 0
    try:
        verdict = running.selection()
    except MirError:  # it is printed: the results cannot be compared
        return 1
    return verdict_code(verdict) if verdict else 1
