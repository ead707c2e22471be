"""``mir report``: results of any host → workbook, page and tables."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mir_plugin.commands.subcommand import SOME_FAILED
from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import on_a_line

if TYPE_CHECKING:
    from mir_plugin.reports.board.config import ReportConfig
    from mir_plugin.reports.build import ReportFiles


def report(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Outputs of lmms-eval or VLMEvalKit, mir.json files, CSV or XLSX score tables; folders or globs."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("mir-report"),
    config: Annotated[
        Path | None, typer.Option(help="YAML with display names, groups, benchmarks and weights.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Report the paper's own tables of published MIR and scores.")
    ] = False,
    average: Annotated[
        str,
        typer.Option(metavar="SET|KEY,…", help="What the average is over: paper-7, paper-9, openvlm-8, or benchmarks."),
    ] = "",
    link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRETRAIN=SFT",
            help="One row for MIR before and scores after fine-tuning; or a CSV of such pairs.",
        ),
    ] = None,
    card: Annotated[
        str,
        typer.Option(metavar="CHECKPOINT", help="Only print its numbers: model card, methods sentence and BibTeX."),
    ] = "",
    formats: Annotated[
        str, typer.Option(metavar="NAME,…", help="Write only these of xlsx, html, csv, md, tex, figures.")
    ] = "",
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Join MIR with benchmark scores: one workbook, one page, and tables to paste.

    Examples:

      mir report results/ mir-out/

      mir report 'runs/*/eval' --config names.yaml --open

      mir report results/ --average openvlm-8 --formats html,tex

      mir report mir-out/ scores.csv --link runs/pre/checkpoint-800=runs/sft

      mir report mir-out/ scores.csv --card runs/pre/checkpoint-800

      mir report --paper

    Exit codes: 0 everything was read; 5 some sources could not be used and are listed; 1 none could.
    """
    if bool(sources) == paper:
        raise MirError("give either results (files or folders) or --paper.")
    if paper and (average or link or card):
        option = "--average" if average else "--link" if link else "--card"
        raise MirError(f"{option} does not apply to --paper, whose rows and average are fixed; leave it out.")
    from mir_plugin.files.atomic import only_writer
    from mir_plugin.reports.board.config import ReportConfig
    from mir_plugin.reports.build import build_paper_report, build_report

    chosen = ReportConfig.load(config) if config else ReportConfig()
    if average:
        chosen = chosen.averaging(average)
    if link:
        chosen = chosen.linking(link)
    if formats:
        chosen = replace(chosen, formats=tuple(name.strip() for name in formats.split(",")))
    if open_page and chosen.formats and "html" not in chosen.formats:
        raise MirError(f"--open needs the page, but --formats is {','.join(chosen.formats)}; add html.")
    if card:
        print_card(sources or [], card, chosen)
        return
    with only_writer(out):
        files = build_paper_report(out, chosen.formats) if paper else build_report(sources or [], out, chosen)
    print_report(files)
    if open_page and files.paths:
        webbrowser.open(files.paths["html"].absolute().as_uri())
    if any(problem.severity == "error" for problem in files.board.problems):
        raise typer.Exit(SOME_FAILED if files.board.rows else 1)
    if files.board.is_empty:
        raise MirError(
            f"no checkpoint in {', '.join(sources or [])} has a number, so no report was written. Name results of "
            "lmms-eval or VLMEvalKit, mir.json files or tables of scores."
        )


def print_card(sources: list[str], checkpoint: str, config: ReportConfig) -> None:
    """Print what to paste about one checkpoint; what a reader must know about the sources goes to standard error."""
    from mir_plugin.reports.board.joint import join
    from mir_plugin.reports.read.sources import read_sources
    from mir_plugin.reports.text.card import find_row, to_card

    board = join(read_sources(sources), config)
    row = find_row(board, checkpoint)
    for problem in board.problems:
        if problem.severity != "note":
            typer.echo(on_a_line(f"{problem.severity}: {problem.where}: {problem.what}"), err=True)
    typer.echo(to_card(board, row), nl=False)


def print_report(files: ReportFiles) -> None:
    """Print the contents of a report, what it could not use, and where its files are."""
    from rich.console import Console

    from mir_plugin.commands.terminal import escape
    from mir_plugin.reports.view.columns import rounded
    from mir_plugin.reports.view.tables import average_rule

    console, board = Console(soft_wrap=True, highlight=False), files.board
    n_with_mir = sum(row.mir is not None for row in board.rows)
    checkpoints, benchmarks = (
        f"{len(items)} {noun}" + "s" * (len(items) != 1)
        for items, noun in ((board.rows, "checkpoint"), (board.benchmarks, "benchmark"))
    )
    console.print(f"{checkpoints} ({n_with_mir} with MIR), {benchmarks}")
    for row in board.rows:
        cohort = f" (cohort {row.cohort})" if len(board.cohorts) > 1 else ""
        shown = [f"MIR {rounded(row.mir, 3)}{cohort}"] if row.mir is not None else []
        shown += [
            f"{one.name} {rounded(row.scores[one.key], one.decimals)}"
            for one in board.benchmarks
            if one.key in row.scores
        ]
        shown += [f"average {rounded(row.average, 1)}"] if row.average is not None else []
        console.print(f"  {escape(row.name)}: {escape(', '.join(shown))}")
    if any(row.average is not None for row in board.rows):
        console.print(escape(average_rule(board)))
    for warning in board.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    errors = ["mir: some sources could not be used:"]
    for problem in board.problems:
        message = on_a_line(f"{problem.where}: {problem.what.rstrip('.')}. {problem.remedy}".rstrip())
        if problem.severity == "error":
            errors.append(f"  {message}")
        else:
            console.print(f"[yellow]{problem.severity}:[/yellow] {escape(message)}")
    for path in files.paths.values():
        console.print(f"wrote {escape(str(path))}")
    if len(errors) > 1:
        typer.echo("\n".join(errors), err=True)
