"""Where the parts of a Hugging Face checkpoint come from: weights, adapter, config and processor. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.hub import folder_of_base
from mir_plugin.model_adapters.weights.left_by_trainers import ADAPTER_CONFIG, partitions_folder, remedy_for
from mir_plugin.model_adapters.weights.lora import ADAPTER_FILES, adapter_file
from mir_plugin.model_adapters.weights.peft_options import refuse_unsound
from mir_plugin.model_adapters.weights.quantization import quantization_of
from mir_plugin.model_adapters.weights.stored import (
    SINGLE_FILES,
    has_checkpoint_weights,
    open_checkpoint_weights,
    read_json,
    wrappers_of,
)

_IMAGE_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Sources:
    """A checkpoint's parts, located.

    Attributes:
        checkpoint: the folder that was named.
        config: of the model that is loaded.
        weights: folder of the whole weights; the base's for an adapter.
        config_from: folder of config.json.
        processor: folder of processor and tokenizer.
        adapter: the folder of an adapter that is merged into the weights.
        rewritten: whether transformers cannot read the weights as they lie there, but needs them handed over.
        notes: what was chosen or left out, as headings and texts.
    """

    checkpoint: Path
    config: Mapping[str, Any]
    weights: Path
    config_from: Path
    processor: Path
    adapter: Path | None = None
    rewritten: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that has a say in the numbers, the checkpoint's first."""
        named = (self.checkpoint, self.weights, self.config_from, self.processor)
        shards = partitions_folder(self.weights) if self.rewritten else None
        return tuple(dict.fromkeys(folder.absolute() for folder in (*named, *([shards] if shards else []))))


def find_sources(folder: CheckpointFolder, options: LoadOptions) -> Sources:
    """Locate the parts and say which were chosen; reads headers only.

    Raises:
        MirError: if an option does not apply, or a part is missing.
    """
    require_applicable(options)
    checkpoint, unpickle = folder.path, options.unpickle
    has_adapter = (checkpoint / ADAPTER_CONFIG).is_file()
    whole = has_checkpoint_weights(checkpoint, unpickle=unpickle)
    adapter = checkpoint if has_adapter and not whole else None
    base = folder.base
    weights, config_from, config = checkpoint, folder.config_from or checkpoint, folder.config
    notes: dict[str, str] = {}
    if adapter is not None:
        weights = _base_of(adapter, base)
        base = base or weights
        config_from, config = weights, read_json(weights / "config.json")
        settings = read_json(adapter / ADAPTER_CONFIG)
        refuse_unsound(settings, adapter / ADAPTER_CONFIG, native=False)
        where = "on quantised" if quantization_of(config, weights / "config.json") else "merged into"
        notes["adapter"] = f"{settings.get('peft_type', 'LORA')} of rank {settings.get('r')}, {where} {weights}"
    elif not whole:
        remedy = remedy_for(checkpoint) or "Copy the whole checkpoint."
        raise MirError(f"{checkpoint} holds no weights (*.safetensors or pytorch_model*.bin). {remedy}")
    if has_adapter and adapter is None:
        left = [*(name for name in ADAPTER_FILES if (checkpoint / name).is_file()), ADAPTER_CONFIG]
        notes["adapter beside"] = (
            f"{left[0]} is not applied: the whole weights beside it count, as they are after a merge. To apply it to "
            "another base, move it to a folder of its own and name the base with --base."
        )
    # Quantised weights have dtypes of their own, which only transformers reads.
    is_quantised = quantization_of(config, config_from / "config.json") is not None
    wrappers = () if is_quantised else wrappers_of(open_checkpoint_weights(weights, unpickle=unpickle).values())
    if wrappers:
        notes["wrappers"] = f"{', '.join(wrappers)} left out of the keys"
    if config_from != checkpoint:
        notes["config"] = f"from {config_from}"
    processor = _processor_folder(checkpoint, base, explicit=options.base is not None)
    if processor != checkpoint:
        notes["processor"] = f"from {processor}"
    rewritten = bool(
        wrappers
        or (weights / ADAPTER_CONFIG).is_file()
        or config_from != weights
        or any((weights / name).is_dir() for name in SINGLE_FILES)
        or not has_checkpoint_weights(weights)
    )
    return Sources(checkpoint, config, weights, config_from, processor, adapter, rewritten, notes)


def require_applicable(options: LoadOptions) -> None:
    """Raise MirError for an option that means nothing here."""
    for name in ("base_llm", "vision_tower", "vision_tower_aux"):
        if getattr(options, name) is not None:
            raise MirError(
                f"--{name.replace('_', '-')} does not apply: a Hugging Face checkpoint holds its language model and "
                "vision tower itself. Leave the option out, or name the family with --family if this is an "
                "original-format folder. The base of an adapter is named with --base."
            )


def _base_of(adapter: Path, named: Path | None) -> Path:
    found = named or folder_of_base(adapter)
    if isinstance(found, str):
        raise MirError(
            f"{adapter} is a PEFT adapter of {found!r}, which is not on this machine. Name its folder with --base."
        )
    adapter_file(adapter)
    if not has_checkpoint_weights(found):
        raise MirError(f"the base {found} of the adapter {adapter} holds no weights. Name another with --base.")
    return found


def _processor_folder(checkpoint: Path, base: Path | None, *, explicit: bool) -> Path:
    """The folder named, the checkpoint's own if it is complete, else its base's.

    Raises:
        MirError: if there is none; names what is missing.
    """
    if explicit and base is not None:
        return base
    lacks = _lacks_processor(checkpoint)
    if lacks is None:
        return checkpoint
    if base is not None and _lacks_processor(base) is None:
        return base
    raise MirError(
        f"{checkpoint} has no processor: {lacks}. Trainer saves one only where it was given one "
        "(processing_class=processor). Name the folder of the base checkpoint with --base (or --processor)."
    )


def _lacks_processor(folder: Path) -> str | None:
    for what, names in (("image processor", _IMAGE_PROCESSOR), ("tokenizer", _TOKENIZER)):
        if not any((folder / name).is_file() for name in names):
            return f"no {what} ({' or '.join(names[:2])})"
    return None
