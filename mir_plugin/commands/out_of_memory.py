"""Device memory that does not suffice: a matter of options, not of a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator
from typing import Any

from typer.core import TyperCommand

from mir_plugin.errors import MirError

# What needs less memory, the least loss first.
REMEDIES = {
    "--batch-size": "fewer samples per forward pass (--batch-size 1)",
    "--device-memory": "streamed layers (--device-memory 8GB)",
    "--dtype": "half precision (--dtype bfloat16)",
    "--n-samples": "fewer samples (--n-samples 50)",
}


@contextlib.contextmanager
def shortage_told(options: Collection[str] = tuple(REMEDIES)) -> Iterator[None]:
    """Make one message of running out of device memory.

    Args:
        options: those that the command has; others are not proposed.
    Raises:
        MirError: instead of ``torch.OutOfMemoryError``; names the options that need less.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # a command that never imported it has not run out of its memory
        remedies = ", ".join(text for option, text in REMEDIES.items() if option in options)
        if torch is None or not isinstance(error, torch.cuda.OutOfMemoryError) or not remedies:
            raise
        what = ". ".join(str(error).split(". ")[:3]).rstrip(".")  # what was asked for and what is free, without advice
        raise MirError(f"the device's memory does not suffice: {what}. What needs less: {remedies}.") from error


class MeasuringCommand(TyperCommand):
    """A subcommand that tells a shortage of memory with the options of its own that help."""

    def invoke(self, ctx: Any) -> Any:  # a context of click, or of the click inside later versions of typer
        """Run the command."""
        with shortage_told([option for parameter in self.params for option in parameter.opts]):
            return super().invoke(ctx)
