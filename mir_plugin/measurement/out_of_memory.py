"""Running out of device memory: a matter of options, not a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator

from mir_plugin.errors import MirError

# What takes less memory, the cheapest first.
REMEDIES = {
    "--batch-size": "fewer samples per forward pass (--batch-size 1)",
    "--device-memory": "streamed layers (--device-memory 8GB)",
    "--dtype": "half precision (--dtype bfloat16)",
    "--n-samples": "fewer samples (--n-samples 50)",
}


@contextlib.contextmanager
def out_of_memory_explained(options: Collection[str] = tuple(REMEDIES)) -> Iterator[None]:
    """Turn running out of device memory into one message.

    Args:
        options: those that the command has; others are not suggested.
    Raises:
        MirError: instead of ``torch.OutOfMemoryError``; names the options that take less.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # a command that never imported it has not run out of its memory
        remedies = ", ".join(text for option, text in REMEDIES.items() if option in options)
        if torch is None or not isinstance(error, torch.cuda.OutOfMemoryError) or not remedies:
            raise
        reason = ". ".join(str(error).split(". ")[:3]).rstrip(".")  # requested and free memory, without torch's advice
        raise MirError(f"out of GPU memory: {reason}. Try: {remedies}.") from error
