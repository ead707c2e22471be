"""ShareGPT4V checkpoints: full, pre-training (tuned upper vision tower) and projector-only.

Their layout is LLaVA's. What differs is which vision tower the original loader takes: always the one its config names,
although training may have left a tuned one inside the checkpoint. Here the trained weights win, as everywhere; what the
original loader computes is met with ``--vision-tower``.
"""

from __future__ import annotations

from pathlib import Path

from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava import loading as llava
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.model_adapters.weights.stored import read_json

FAMILY = "sharegpt4v"


def recognises(checkpoint: Path) -> bool:
    """Whether config.json has the model_type or architecture that ShareGPT4V's code writes."""
    config = read_json(checkpoint / "config.json")
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return config.get("model_type") == "share4v" or "Share4VLlamaForCausalLM" in named


def load(checkpoint: Path, options: LoadOptions, *, shared: SharedParts | None = None) -> LlavaAdapter:
    """Load a ShareGPT4V checkpoint. Raises MirError if parts are missing, damaged, or do not fit each other."""
    return llava.load(checkpoint, options, family=FAMILY, shared=shared)


def inspect(checkpoint: Path, options: LoadOptions) -> dict[str, str]:
    """What loading would use; no weight is read. Raises MirError as loading would."""
    return llava.inspect(checkpoint, options, family=FAMILY)
