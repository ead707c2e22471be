"""What typer runs a subcommand with, and the exit codes besides 0, 1 (nothing could be done) and 2 (wrong usage)."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from mir_plugin.measurement.out_of_memory import out_of_memory_explained

if TYPE_CHECKING:
    from mir_plugin.selection.select import Selection

SOME_FAILED = 5
INTERRUPTED = 130


# What may follow --ray as its value; anything else is the next argument.
_ADDRESS = re.compile(r"auto|local|ray://.+|\[?[\w.:-]+\]?:\d+")


def verdict_code(verdict: Selection) -> int:
    """What `mir select` and `mir sweep` exit with; 0 also where a single result leaves nothing to choose."""
    codes = {"clear": 0, "undecided": 3, "still falling": 4}
    return codes[verdict.outcome] if len(verdict.ranking) > 1 else 0


class Subcommand(TyperCommand):
    """A subcommand that explains running out of memory with those of its own options that help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; an option whose value may be left out gets its default value there."""
        optional = {name for parameter in self.params if parameter.metavar == "[ADDRESS]" for name in parameter.opts}
        return super().parse_args(ctx, _with_addresses(args, optional))

    def invoke(self, ctx: Any) -> Any:  # a context of click, or of the click inside later versions of typer
        """Run the command."""
        with out_of_memory_explained([option for parameter in self.params for option in parameter.opts]):
            return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for every panel. Plain text: typer's tables cut long names at 80 columns."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        general = sections.pop("Options", [])
        for title, records in {**sections, "Options": general}.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _with_addresses(args: list[str], optional: set[str]) -> list[str]:
    """The arguments with "auto" behind every option of these that has no address.

    >>> _with_addresses(["--ray", "runs/*", "--ray", "10.0.0.1:6379"], {"--ray"}), _with_addresses([], set())
    (['--ray', 'auto', 'runs/*', '--ray', '10.0.0.1:6379'], [])
    """
    given: list[str] = []
    for argument, following in itertools.pairwise([*args, ""]):
        given.append(argument)
        if argument in optional and not _ADDRESS.fullmatch(following):
            given.append("auto")
    return given
