"""The ``mir`` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

from mir_plugin import __version__
from mir_plugin.commands.adapters import adapters
from mir_plugin.commands.compare import compare
from mir_plugin.commands.demo import demo
from mir_plugin.commands.indicators import indicators
from mir_plugin.commands.inspect import inspect
from mir_plugin.commands.option_groups import expand_options
from mir_plugin.commands.pictures import pictures
from mir_plugin.commands.report import report
from mir_plugin.commands.robustness import robustness
from mir_plugin.commands.run import run
from mir_plugin.commands.select import select
from mir_plugin.commands.subcommand import Subcommand
from mir_plugin.commands.sweep import sweep
from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import accept_all_characters, on_a_line
from mir_plugin.files.redaction import without_secrets

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Modality Integration Rate (MIR, arXiv 2410.07167): which vision-language checkpoint is worth fine-tuning.",
)
# Whole at 80 columns, where the first sentences of the docstrings would be cut.
COMMANDS: dict[Callable[..., None], str] = {
    run: "Measure MIR of one checkpoint.",
    inspect: "Show what a checkpoint is made of and how to measure it.",
    sweep: "Measure many checkpoints, and say which one to fine-tune.",
    compare: "Test whether two results differ, and whether that matters.",
    select: "Recommend one of the measured checkpoints.",
    indicators: "Compute the indicators that the paper compares MIR with.",
    robustness: "Show how far MIR moves with what it is measured on.",
    pictures: "Draw vision and text tokens, their norms and their gaps.",
    report: "Join MIR with benchmark scores: workbook, page, tables.",
    adapters: "List the checkpoint families that load natively.",
    demo: "Measure two tiny checkpoints with lmms-eval, and report.",
}
for command, summary in COMMANDS.items():
    app.command(cls=Subcommand, short_help=summary)(expand_options(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mir-plugin {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the subcommand."""


def main() -> None:
    """Entry point: a user's mistake prints as one message on standard error and exits with 1."""
    accept_all_characters(sys.stdout, sys.stderr)
    asked: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        """End as after Ctrl-C, so that half-written files are cleared away; SIGTERM's default ends without a word."""
        asked.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a script's `mir … &` is not ended by Ctrl-C
            signal.signal(number, end)
    try:
        app()
    except Exception as error:
        if asked:  # libraries in C, matplotlib for one, make an error of their own of the exception that ``end`` raises
            sys.exit(128 + asked[-1])
        message = _message(error)
        if message is None:
            raise
        typer.echo(_shown(f"mir: {message}"), err=True)
        sys.exit(1)


def _message(error: Exception) -> str | None:
    """What the user can put right; None for an error of ours."""
    if isinstance(error, MirError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a closed terminal, a file that went away
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Put that right and repeat the command."
    return None


def _shown(message: str) -> str:
    """Line by line as it can be shown, without secrets that other programs put into their messages."""
    return "\n".join(map(on_a_line, without_secrets(message).split("\n")))


if __name__ == "__main__":
    main()
