"""What adapter_config.json asks for: which adapters base and stored factors give back, and which not. Imports no torch.

An adapter is trained on a base, and some methods change that base when they begin (PiSSA takes its largest directions
out). PEFT repeats such a change when the adapter is loaded, where the base alone decides it; where training data,
gradients or random numbers did, what is loaded is another model. Every option of PEFT 0.21 is compared with PEFT's own
merge of the model in training in tests/adapters/test_peft_options.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError

# Values of init_lora_weights that leave the base as it is.
_BASE_UNCHANGED = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# Those that change it in a way that follows from the base.
_REPEATED = {"pissa": "PiSSA", "olora": "OLoRA"}
_CHANGED_BY = {
    "corda": "training data",
    "lora_ga": "gradients of training data",
    "loftq": "its quantisation",
    "pissa_niter": "random numbers",
}
_MERGE = "Merge the adapter where it was trained (merge_and_unload) and measure the merged checkpoint."
_NOT_ONE_WEIGHT: Mapping[str, str] = {
    "alora_invocation_tokens": "its factors apply from the invocation tokens on, so no merged weight stands for it",
    "arrow_config": "its factors are chosen for every token, so no merged weight stands for it",
    "use_qalora": "PEFT does not merge QALoRA",
    "kasa_config": "the base was truncated when training began",
    "use_bdlora": "its factors are blocks of a parallel layer",
    "megatron_config": "it belongs to Megatron's parallel layers",
    "layer_replication": "the base's layers were multiplied",
}
# What PEFT merges in a whole model, and the loaders of original formats, weight by weight, do not.
_ONLY_THROUGH_PEFT: Mapping[str, str] = {
    "lora_bias": "its factors have biases",
    "target_parameters": "it adapts parameters that are no linear layer's",
    "trainable_token_indices": "single rows of the embeddings were trained",
}


def method_of(config: Mapping[str, Any]) -> str | None:
    """What a module's weight takes besides plain LoRA's sum, by its name; None for plain LoRA."""
    names = [_REPEATED.get(str(config.get("init_lora_weights")).lower())]
    names.append("DoRA" if config.get("use_dora") else None)
    return " and ".join(name for name in names if name) or None


def refuse_unsound(config: Mapping[str, Any], path: Path, *, native: bool) -> None:
    """Refuse adapters whose model does not follow from the base and what is stored.

    Args:
        path: of the adapter_config.json whose content this is.
        native: whether weights are merged one by one; else PEFT merges the whole model.
    Raises:
        MirError: naming the option.
    """
    kind = str(config.get("peft_type", "LORA"))
    if kind.rpartition(".")[2] != "LORA":
        raise MirError(f"{path} has peft_type = {kind!r}; only LoRA is read. {_MERGE}")
    start = config.get("init_lora_weights")
    name = start.lower() if isinstance(start, str) else start
    if name not in _BASE_UNCHANGED and name not in _REPEATED:
        decided = next((by for known, by in _CHANGED_BY.items() if str(name).startswith(known)), "an unknown method")
        raise MirError(
            f"{path} has init_lora_weights = {start!r}: the base was changed when training began, as {decided} "
            f"decided, and is not stored. {_MERGE} Or save the adapter with path_initial_model_for_weight_conversion."
        )
    reasons = {**_NOT_ONE_WEIGHT, **(_ONLY_THROUGH_PEFT if native else {})}
    for option, reason in reasons.items():
        if config.get(option):
            raise MirError(f"{path} has {option} = {config[option]!r}: {reason}. {_MERGE}")


def refuse_tied(config: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Raise MirError where an adapter changes embeddings that the base (its ``config``) uses as its head too.

    Args:
        names: modules that the adapter changes.
    """
    if not config.get("tie_word_embeddings"):
        return
    for name in names:
        if name.rpartition(".")[2] in ("embed_tokens", "lm_head"):
            raise MirError(
                f"{path} changes {name!r}, which the base LLM uses both as embeddings and as head "
                f"(tie_word_embeddings). {_MERGE}"
            )
