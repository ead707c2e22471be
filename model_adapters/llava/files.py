"""What an original-format LLaVA checkpoint is made of, found out from its files, config and key names.

Nothing is read here but configs and headers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.llava.key_rules import LLM_RULES, TOWER_RULES, projector_rules
from mir_plugin.model_adapters.llava.tower_config import open_tower_weights
from mir_plugin.model_adapters.prompts.tokenizer import has_tokenizer
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.hub import find_folder
from mir_plugin.model_adapters.weights.key_rules import KeyRule, rename
from mir_plugin.model_adapters.weights.left_by_trainers import partitions_folder, remedy_for
from mir_plugin.model_adapters.weights.lora import (
    ADAPTER_FILES,
    LoraAdapter,
    LoraPair,
    adapter_file,
    open_lora,
    require_all_targets,
)
from mir_plugin.model_adapters.weights.peft_options import refuse_tied
from mir_plugin.model_adapters.weights.quantization import in_words, quantization_of
from mir_plugin.model_adapters.weights.rotation import rotation_difference, trained_without_rotation_of
from mir_plugin.model_adapters.weights.stored import (
    StoredTensor,
    has_checkpoint_weights,
    open_checkpoint_weights,
    open_state,
    read_json,
    wrappers_of,
)

logger = logging.getLogger(__name__)

_TOWER_PREFIX = "vision_tower.encoder."


_TUNING_FLAGS = (
    "tune_mm_mlp_adapter",
    "tune_vision_tower",
    "optimize_vision_tower",
    "optimize_vision_tower_aux",
    "tune_language_model",
    "tune_entire_model",
    "use_moca",
)


@dataclass(frozen=True)
class LlavaFiles:
    """A checkpoint's parts, located and named.

    Attributes:
        kind: "full", "projector" (projector-only) or "lora".
        config: the checkpoint's config.json.
        base_llm: folder of the base LLM; None for a full checkpoint.
        tokenizer: folder the tokenizer is read from.
        tower: folder with the vision tower's architecture and image preprocessing.
        tower_source: where the tower's weights come from, for people.
        weights: parameter name of the model → weight, still on disk.
        lora: by module of the model, empty without LoRA.
        has_moca: whether the decoder layers are calibrated.
        notes: what was chosen or left out besides, as headings and texts.
        more_folders: of parts that only some families have.
    """

    checkpoint: Path
    kind: str
    config: Mapping[str, Any]
    base_llm: Path | None
    tokenizer: Path
    tower: Path
    tower_source: str
    weights: Mapping[str, StoredTensor]
    lora: Mapping[str, LoraPair]
    has_moca: bool
    more_folders: tuple[Path, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype_name(self) -> str:
        """What the language model's weights were saved as, "bfloat16"."""
        embeddings = self.weights.get("base_llm.model.embed_tokens.weight")
        return "float32" if embeddings is None else embeddings.dtype_name

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that has a say in the numbers."""
        return tuple(f for f in (self.checkpoint, self.base_llm, self.tower, *self.more_folders) if f is not None)


def description(files: LlavaFiles, options: LoadOptions) -> dict[str, str]:
    """Headings and texts for ``mir inspect``."""
    config = files.config
    ranks = sorted({pair.down.shape[0] for pair in files.lora.values()})
    lora = f"rank {', '.join(map(str, ranks))} on {len(files.lora)} modules" if files.lora else "none"
    methods = sorted({pair.method for pair in files.lora.values() if pair.method})
    lora += "".join(f", {method}" for method in methods)
    tuned = [name for name in _TUNING_FLAGS if config.get(name)]
    return {
        "kind": {"full": "full checkpoint", "projector": "projector only", "lora": "LoRA"}[files.kind],
        "base LLM": "inside the checkpoint" if files.base_llm is None else str(files.base_llm),
        "layers": f"{config.get('num_hidden_layers')} of width {config.get('hidden_size')}",
        "vision tower": files.tower_source,
        "projector": str(config.get("mm_projector_type", "linear")),
        "LoRA": lora if options.merge_lora or not files.lora else f"{lora}, kept beside the base weights",
        "MoCa": "in every layer" if files.has_moca else "none",
        "tuned parts": ", ".join(tuned) or "not stated in config.json",
        "image shape": str(config.get("image_aspect_ratio") or "square"),
        "tokenizer": str(files.tokenizer),
        "saved as": files.dtype_name,
        **files.notes,
    }


def search_places(checkpoint: Path) -> tuple[Path, ...]:
    """Folders that relative paths in a checkpoint's config may start from, besides the working directory."""
    return (checkpoint, checkpoint.parent, checkpoint.parent.parent)  # a checkpoint-N/ lies one level deeper


def open_llava(
    folder: CheckpointFolder, options: LoadOptions, *, family: str, more_rules: tuple[KeyRule, ...] = ()
) -> LlavaFiles:
    """Find the parts of a checkpoint.

    Args:
        more_rules: for keys of parts that this family has besides LLaVA's.

    Raises:
        MirError: if a part is missing, damaged or contradicts another; names it and the option that supplies it.
    """
    checkpoint, config = folder.path, folder.config
    kind = _kind(checkpoint, options)
    near = search_places(checkpoint)
    base_llm = None if kind == "full" else _base_llm(checkpoint, kind, config, options, near)
    if kind == "full" and options.base_llm is not None:
        raise MirError(
            f"{checkpoint} is a full checkpoint with its own language model, so --base-llm {options.base_llm} "
            f"would change nothing. Leave it out, or name the projector-only checkpoint."
        )
    adapter = open_lora(checkpoint) if kind == "lora" else None
    weights = _weights(checkpoint, kind, config, base_llm, adapter, family, more_rules, options)
    tower, tower_source, tower_weights = _vision_tower(checkpoint, config, options, weights, near)
    weights = {name: weight for name, weight in weights.items() if not name.startswith(_TOWER_PREFIX)} | tower_weights
    return LlavaFiles(
        checkpoint=checkpoint,
        kind=kind,
        config=config,
        base_llm=base_llm,
        tokenizer=_tokenizer_folder(checkpoint, base_llm),
        tower=tower,
        tower_source=tower_source,
        weights=weights,
        lora=_lora(checkpoint, config, adapter, weights, family) if adapter else {},
        has_moca=_has_moca(checkpoint, config, weights),
        more_folders=_shards(checkpoint, options),
        notes=_notes(checkpoint, kind, weights) | _rotation_note(config, base_llm),
    )


def announce(files: LlavaFiles) -> None:
    """Log what was chosen."""
    if files.has_moca and files.config.get("use_moca") is None:
        logger.warning(
            "%s: config.json has no use_moca, but MoCa weights are stored; they are applied", files.checkpoint
        )
    for heading, text in files.notes.items():
        logger.warning("%s: %s: %s", files.checkpoint, heading, text)
    logger.info("%s: %s checkpoint; vision tower: %s", files.checkpoint, files.kind, files.tower_source)


def _kind(checkpoint: Path, options: LoadOptions) -> str:
    has_adapter = (checkpoint / "adapter_config.json").is_file() or any(
        (checkpoint / name).is_file() for name in ADAPTER_FILES
    )
    whole = has_checkpoint_weights(
        checkpoint, unpickle=options.unpickle
    )  # also where an mm_projector.bin of the pre-training stage lies beside
    if has_adapter and (options.base_llm is not None or not whole):
        return "lora"
    if whole:
        return "full"
    if (checkpoint / "mm_projector.bin").is_file():
        return "projector"
    remedy = remedy_for(checkpoint) or "Check that the copy or download is complete."
    raise MirError(
        f"{checkpoint} holds no weights: neither a whole model (model.safetensors, pytorch_model.bin or shards), "
        f"nor mm_projector.bin, nor a LoRA adapter. {remedy}"
    )


def _shards(checkpoint: Path, options: LoadOptions) -> tuple[Path, ...]:
    """The folder of ZeRO partitions that are read, which is no part of the checkpoint otherwise."""
    shards = partitions_folder(checkpoint) if options.unpickle and not has_checkpoint_weights(checkpoint) else None
    return () if shards is None else (shards,)


def _notes(checkpoint: Path, kind: str, weights: Mapping[str, StoredTensor]) -> dict[str, str]:
    """What people should know of a choice that was made for them."""
    notes = {}
    left = [name for name in ADAPTER_FILES if (checkpoint / name).is_file()]
    if kind == "full" and left:
        notes["adapter beside"] = (
            f"{left[0]} is not applied: the whole weights beside it count, as they are after a merge. To apply it to "
            "another base, name that one with --base-llm."
        )
    wrappers = wrappers_of(weight for weight in weights.values() if kind != "lora" or weight.path.parent != checkpoint)
    if wrappers:
        notes["wrappers"] = f"{', '.join(wrappers)} left out of the keys"
    return notes


def _rotation_note(config: Mapping[str, Any], base_llm: Path | None) -> dict[str, str]:
    path = None if base_llm is None else base_llm / "config.json"
    if path is None or not path.is_file() or not trained_without_rotation_of(base := read_json(path), config):
        return {}
    difference = rotation_difference(config, base)
    if difference is None:
        return {}
    name, ours, its = difference
    return {
        "rotation": f"{name} = {ours} of the checkpoint counts, not {its} of its base's rope_parameters, which a "
        "training with transformers 4 does not read"
    }


def _base_llm(
    checkpoint: Path, kind: str, config: Mapping[str, Any], options: LoadOptions, near: tuple[Path, ...]
) -> Path:
    if options.base_llm is not None or options.base is not None:
        return find_folder(str(options.base_llm or options.base), (), part="base LLM", option="--base-llm")
    name = config.get("_name_or_path")
    if kind == "lora" and (checkpoint / "adapter_config.json").is_file():
        name = read_json(checkpoint / "adapter_config.json").get("base_model_name_or_path") or name
    if not name:
        raise MirError(
            f"{checkpoint} is a {kind} checkpoint and its config does not name the base LLM. Add --base-llm DIR."
        )
    return find_folder(str(name), near, part="base LLM", option="--base-llm")


def _weights(
    checkpoint: Path,
    kind: str,
    config: Mapping[str, Any],
    base_llm: Path | None,
    adapter: LoraAdapter | None,
    family: str,
    more_rules: tuple[KeyRule, ...],
    options: LoadOptions,
) -> dict[str, StoredTensor]:
    rules = _rules(config, more_rules)
    if base_llm is None:
        stored = open_checkpoint_weights(checkpoint, unpickle=options.unpickle)
        _refuse_quantised(checkpoint, config, stored)
        return rename(stored, rules, family=family)
    base = _base_weights(base_llm, rules, family)
    if kind == "projector":
        return base | rename(open_state(checkpoint / "mm_projector.bin"), rules, family=family)
    trained = checkpoint / "non_lora_trainables.bin"
    if not trained.is_file():
        raise MirError(
            f"{checkpoint} holds a LoRA adapter without {trained.name}, where LLaVA saves the projector: that file and "
            "config.json are written at the end of a training, not into each checkpoint-N. Measure the run's folder, "
            f"or take the projector from DeepSpeed's state. {remedy_for(checkpoint) or ''}".rstrip()
        )
    replaced = rename(adapter.replaced if adapter else {}, rules, family=family)
    return base | rename(open_state(trained), rules, family=f"{family} LoRA") | replaced


def _refuse_quantised(checkpoint: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """A config of whole plain weights may still say how the base was quantised while they were trained (QLoRA)."""
    settings = quantization_of(config, checkpoint / "config.json")
    if settings and not all(weight.dtype.is_floating_point for weight in stored.values()):
        raise MirError(
            f"{checkpoint} is quantised ({in_words(settings)}); quantised weights in the original layout are not "
            "measured. Use the checkpoint it was made from, or its Hugging Face version."
        )


def _rules(config: Mapping[str, Any], more_rules: tuple[KeyRule, ...] = ()) -> tuple[KeyRule, ...]:
    return (*LLM_RULES, *TOWER_RULES, *projector_rules(str(config.get("mm_projector_type", "linear"))), *more_rules)


def _base_weights(base_llm: Path, rules: tuple[KeyRule, ...], family: str) -> dict[str, StoredTensor]:
    """Those of a language model, or of a full LLaVA that was trained further: its own parts, where nothing newer is."""
    stored = open_checkpoint_weights(base_llm)
    if any(key.startswith("model.mm_projector.") for key in stored):
        return rename(stored, rules, family=f"{family} full base")
    return rename(stored, LLM_RULES, family=f"{family} base LLM")


def _lora(
    checkpoint: Path,
    config: Mapping[str, Any],
    adapter: LoraAdapter,
    weights: Mapping[str, StoredTensor],
    family: str,
) -> dict[str, LoraPair]:
    require_all_targets(
        checkpoint, adapter, [name.removeprefix("base_llm.") for name in weights if name.startswith("base_llm.")]
    )
    changed = [*adapter.pairs, *(name.rpartition(".")[0] for name in adapter.replaced)]
    refuse_tied(config, changed, adapter_file(checkpoint))
    factors = {f"{module}.weight": pair.up for module, pair in adapter.pairs.items()}
    module_of = {id(factors[f"{module}.weight"]): module for module in adapter.pairs}
    renamed = rename(factors, _rules(config), family=f"{family} LoRA")
    return {name.removesuffix(".weight"): adapter.pairs[module_of[id(up)]] for name, up in renamed.items()}


def _vision_tower(
    checkpoint: Path,
    config: Mapping[str, Any],
    options: LoadOptions,
    weights: Mapping[str, StoredTensor],
    near: tuple[Path, ...],
) -> tuple[Path, str, dict[str, StoredTensor]]:
    """The most specific trained weights win: the user's, in the state dict, in the checkpoint's folder, in config."""
    inside = {name: weight for name, weight in weights.items() if name.startswith(_TOWER_PREFIX)}
    if options.vision_tower is not None:
        folder = find_folder(str(options.vision_tower), (), part="vision tower", option="--vision-tower")
        return folder, f"{folder} (named by --vision-tower)", _below_tower(open_tower_weights(folder))
    own_folder = checkpoint / "vision_tower"
    own_folder_exists = (own_folder / "config.json").is_file() and has_checkpoint_weights(own_folder)
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    if not name and not own_folder_exists:
        raise MirError(f"{checkpoint / 'config.json'} has no mm_vision_tower. Add --vision-tower DIR.")
    if own_folder_exists:
        folder = own_folder
    else:
        folder = find_folder(str(name), near, part="vision tower", option="--vision-tower")
    if inside:
        return folder, f"inside the checkpoint's weights (architecture from {folder})", inside
    if own_folder_exists:
        return folder, f"{folder} (tower folder inside the checkpoint)", _below_tower(open_tower_weights(folder))
    return folder, f"{folder} (named by mm_vision_tower)", _below_tower(open_tower_weights(folder))


def _below_tower(weights: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {f"vision_tower.{name}": weight for name, weight in weights.items()}


def _tokenizer_folder(checkpoint: Path, base_llm: Path | None) -> Path:
    places = [folder for folder in (checkpoint, base_llm) if folder is not None]
    for folder in reversed(places):  # the original takes the base's where a base is given
        if has_tokenizer(folder):
            return folder
    listed = " or ".join(str(folder) for folder in places)
    raise MirError(f"no tokenizer (tokenizer.model or tokenizer.json) in {listed}. Copy the base LLM's into it.")


def _has_moca(checkpoint: Path, config: Mapping[str, Any], weights: Mapping[str, StoredTensor]) -> bool:
    stored = next((weight for name, weight in weights.items() if ".modality_layernorm." in name), None)
    declared = config.get("use_moca")
    if declared and stored is None:
        raise MirError(
            f"{checkpoint / 'config.json'} says use_moca, but no weights of the checkpoint are named "
            f"modality_layernorm. Copy the whole checkpoint, or set use_moca to false if it was trained without."
        )
    if stored is not None and declared is False:
        raise MirError(
            f"{checkpoint / 'config.json'} says use_moca is false, but the checkpoint holds {stored.origin}. "
            f"Set use_moca to true, or remove these weights."
        )
    return stored is not None
