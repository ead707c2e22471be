"""``mir sweep``: many checkpoints, one after another → a table, the verdict, and the joint report."""

from __future__ import annotations

import functools
import glob
import json as json_module
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands.exit_codes import INTERRUPTED, SOME_FAILED
from mir_plugin.commands.indicators import N_QUESTIONS
from mir_plugin.commands.out_of_memory import shortage_told
from mir_plugin.errors import MirError
from mir_plugin.measurement import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mir_plugin.measurement.request import Request
    from mir_plugin.processes import Group
    from mir_plugin.selection.checkpoint_watcher import Watch
    from mir_plugin.selection.sweep import Measured, Sweep

WATCHING = "Watching"
INDICATORS = "Indicators"


def sweep(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint folders, or patterns such as 'runs/*/checkpoint-*'.")
    ] = None,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    images: options.Images = None,
    texts: options.Texts = None,
    dataset: options.Dataset = None,
    embedded: options.Embedded = False,
    n_samples: options.NSamples = None,
    seed: options.Seed = 0,
    outliers: options.Outliers = options.OutlierChoice.REPLACE,
    no_normalization: options.NoNormalization = False,
    dtype: options.Dtype = options.DtypeChoice.AUTO,
    device: options.Device = "auto",
    device_memory: options.DeviceMemory = None,
    batch_size: options.BatchSize = None,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    indicators: Annotated[
        bool,
        typer.Option(
            "--indicators",
            help="Also measure what `mir indicators` does, as further columns.",
            rich_help_panel=INDICATORS,
        ),
    ] = False,
    n_questions: Annotated[
        int,
        typer.Option(min=0, help="In-context questions with --indicators; 0 asks none.", rich_help_panel=INDICATORS),
    ] = N_QUESTIONS,
    tolerance: options.Tolerance = 0.0,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Measure folders named after a step (checkpoint-200, step-200, ...) below this one as a training "
            "completes them, until Ctrl-C or a plain kill.",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    watch_idle: Annotated[
        float | None,
        typer.Option(min=0, help="Stop when nothing new came for so many seconds.", rich_help_panel=WATCHING),
    ] = None,
    watch_settle: Annotated[
        float,
        typer.Option(min=0, help="Seconds for which a checkpoint must not have changed.", rich_help_panel=WATCHING),
    ] = 5.0,
    out: Annotated[
        Path, typer.Option(help="Folder for all results, table and report.", rich_help_panel=options.OUTPUT)
    ] = Path("mir-sweep"),
    force: Annotated[
        bool,
        typer.Option("--force", help="Measure again what is measured already.", rich_help_panel=options.OUTPUT),
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", help="Write the joint workbook and page.", rich_help_panel=options.OUTPUT),
    ] = True,
    json: options.Json = False,
) -> None:
    """Measure many checkpoints on the same samples, and say which one to fine-tune.

    What the checkpoints share (base LLM, vision tower, what it sees of the samples) is loaded and computed once; every
    number is that of a single `mir run`. A failed checkpoint is reported and the rest goes on. A killed sweep
    continues where it was.

    Examples:

      mir sweep 'runs/pretrain/checkpoint-*' --base-llm vicuna-7b-v1.5

      mir sweep --watch runs/pretrain --base-llm vicuna-7b-v1.5

    Exit codes: 0 all measured; 1 nothing could be measured; 5 some checkpoints failed; 130 interrupted.
    """
    from mir_plugin.commands.sweep_table import SweepDisplay, print_sweep
    from mir_plugin.measurement.loading import load_options
    from mir_plugin.measurement.request import Request, held
    from mir_plugin.model_adapters import adapter_spec
    from mir_plugin.processes import launched_group
    from mir_plugin.results import MirConfig
    from mir_plugin.selection.checkpoint_watcher import Watch
    from mir_plugin.selection.sweep import Sweep

    if bool(checkpoints) == (watch is not None):
        raise MirError("name checkpoints, or a training's folder with --watch; one of the two.")
    if family:
        adapter_spec(family)
    folders = found_checkpoints(checkpoints or [])
    watcher = Watch(watch, watch_settle) if watch else None
    config = MirConfig(outliers=outliers.value, normalize=not no_normalization)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = load_options(locals())
    if indicators and load.device_memory is not None:
        raise MirError("--indicators need all weights in memory; leave out --device-memory or --indicators.")
    interrupted = False
    with launched_group(load.device) as group:
        if indicators and group.size > 1:
            raise MirError(
                f"--indicators are measured by one process, and there are {group.size}. Sweep with all processes, then "
                "once more with --indicators and one: what is measured is kept."
            )
        display = SweepDisplay(shown=group.rank == 0, watching=watch is not None)
        asked = functools.partial(
            Request, load=load, sample_set=sample_set, config=config, batch_size=batch_size, force=force, group=group
        )
        measure = _measuring(asked, n_questions if indicators else None)
        running = Sweep(out, measure, tolerance=tolerance, on_change=display.refresh, writes=group.rank == 0)
        try:
            with held(out, group), display.of(running):
                if watch is not None and watcher is not None:
                    running.recall(watch, sample_set.fingerprint, config)
                    with _ended_by_kill():
                        _follow(running, watcher, watch_settle, watch_idle, group)
                else:
                    running.add(group.broadcast(folders))
                    running.run()
        except KeyboardInterrupt:
            interrupted = watch is None  # a watch is ended like this
    if group.rank > 0:
        return
    report_paths = _report(running) if report else []
    if json:
        typer.echo(json_module.dumps(running.as_json(), indent=2, allow_nan=False))
    else:
        print_sweep(running, report_paths)
    code = _exit_code(running)
    if interrupted or code:
        raise typer.Exit(INTERRUPTED if interrupted else code)


def found_checkpoints(patterns: list[str]) -> list[Path]:
    """The folders that patterns match and that hold a config.json; a name without wildcards stands for itself.

    Raises:
        MirError: if a pattern matches no such folder.
    """
    found: list[Path] = []
    for pattern in patterns:
        if "://" in pattern:
            raise MirError(f"{pattern!r} is an address; expected a folder or a pattern. Download the checkpoint first.")
        if not glob.has_magic(pattern):
            found.append(Path(pattern))
            continue
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - may be absolute
        folders = [match for match in matches if (match / "config.json").is_file()]
        if not folders:
            raise MirError(
                f"{pattern!r} matches no checkpoint folder ({len(matches)} matches, none with a config.json). "
                "Check the pattern; quote it so that the shell leaves it alone."
            )
        found += folders
    return found


def _measuring(asked: Callable[..., Request], n_questions: int | None) -> Callable[[Path, Path], Measured]:
    """What measures one checkpoint of the sweep, keeping what the next one may share.

    Args:
        asked: makes the request of a checkpoint and a result_path.
        n_questions: of the in-context accuracy; None measures no indicators.
    """
    from mir_plugin.commands import indicators
    from mir_plugin.model_adapters import checkpoint_folder
    from mir_plugin.model_adapters.weights.shared_parts import SharedParts
    from mir_plugin.selection.sweep import INDICATORS_NAME, Measured, indicators_document

    shared = SharedParts()
    questions = indicators.chosen_questions(n=n_questions) if n_questions else []
    about = indicators.about_questions(questions)

    def measure(checkpoint: Path, result_path: Path) -> Measured:
        request = asked(checkpoint, result_path=result_path)
        existing = request.earlier()
        recorded = indicators_document(result_path.parent, existing) if existing else {}
        missing = n_questions is not None and not indicators.answered(recorded, about)
        if existing and not missing:
            return Measured(existing, kept=True)
        with request.held(), shortage_told():
            adapter = request.adapter(shared)
            result = existing or request.measure(adapter)
            if missing:
                samples, path = request.sample_set, result_path.with_name(INDICATORS_NAME)
                found = indicators.measure_indicators(
                    adapter, checkpoint_folder(checkpoint), samples, questions, batch_size=request.batch_size
                )
                indicators.save_indicators(path, found, adapter, checkpoint, samples, about)
        return Measured(result, kept=existing is not None)

    return measure


@contextmanager
def _ended_by_kill() -> Iterator[None]:
    """Inside, a plain kill (SIGTERM) is Ctrl-C, which programs that a script starts with & do not get."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(running: Sweep, watcher: Watch, settle: float, idle: float | None, group: Group) -> None:
    """Measure what lands, until the watch ends; process 0 looks, and all measure."""
    rounds = watcher.rounds(max(settle / 2, 0.2), idle) if group.rank == 0 else None
    while (found := group.broadcast(next(rounds, None) if rounds else None)) is not None:
        if found:
            running.add(found)
            running.run()


def _report(running: Sweep) -> list[Path]:
    """The joint report of all that is measured; none without a result."""
    from mir_plugin.files.atomic import write_atomically
    from mir_plugin.indicators.indicators import DESCRIPTIONS, HIGHER_IS_BETTER
    from mir_plugin.reports.board.config import ReportConfig
    from mir_plugin.reports.build import build_report
    from mir_plugin.reports.view.indicator_columns import indicator_table, with_indicators
    from mir_plugin.results import RESULT_NAME

    sources = [running.out_dir / one.name / RESULT_NAME for one in running.entries if one.result]
    if not sources:
        return []
    recorded = {str(one.checkpoint): one.indicators for one in running.entries if one.indicators}
    if recorded:
        sources.append(running.out_dir / "indicators.csv")
        write_atomically(sources[-1], indicator_table(recorded))
    config = ReportConfig(benchmarks=with_indicators(DESCRIPTIONS, HIGHER_IS_BETTER))
    return list(build_report(sources, running.out_dir / "report", config).paths.values())


def _exit_code(running: Sweep) -> int:
    if not any(one.result for one in running.entries):
        return 1
    return SOME_FAILED if any(one.state == "failed" for one in running.entries) else 0
