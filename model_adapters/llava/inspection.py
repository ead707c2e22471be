"""What ``mir inspect`` shows of checkpoints of the LLaVA layout, from configs and headers. Imports no torch."""

from __future__ import annotations

from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.files import description, open_llava
from mir_plugin.model_adapters.llava.parts import open_parts
from mir_plugin.model_adapters.recognition import CheckpointFolder

FAMILY = "llava-1.5"
SHAREGPT4V = "sharegpt4v"


def inspect(folder: CheckpointFolder, options: LoadOptions, *, family: str = FAMILY) -> dict[str, str]:
    """What loading would use.

    Raises:
        MirError: for a part that is missing, not supported, or contradicts another.
    """
    files = open_llava(folder, options, family=family)
    open_parts(files)
    return description(files, options)


def inspect_sharegpt4v(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """What loading a ShareGPT4V checkpoint would use, as ``inspect``."""
    return inspect(folder, options, family=SHAREGPT4V)
