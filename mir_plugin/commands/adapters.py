"""``mir adapters``: the checkpoint families."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mir_plugin.commands.terminal import escape


def adapters() -> None:
    """List the checkpoint families that load natively."""
    from mir_plugin.model_adapters import known_adapters

    table = Table(box=SIMPLE_HEAD)
    for heading in ("family", "also called", "checkpoints"):
        table.add_column(heading, overflow="fold")
    for spec in known_adapters():
        table.add_row(*map(escape, (spec.name, ", ".join(spec.aliases), spec.summary)))
    Console().print(table)
