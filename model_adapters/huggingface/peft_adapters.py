"""PEFT adapters of Hugging Face models: merged by PEFT itself, strictly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.key_rules import listed
from mir_plugin.model_adapters.weights.lora import adapter_file
from mir_plugin.model_adapters.weights.stored import open_weight_file


def merged(model: Any, adapter: Path) -> Any:
    """The model with the adapter merged into its weights, as ``merge_and_unload`` does it.

    Raises:
        MirError: as ``applied``.
    """
    return applied(model, adapter).merge_and_unload()


def applied(model: Any, adapter: Path) -> Any:
    """The model with the adapter beside its weights. Merging into quantised weights would round them anew.

    Raises:
        MirError: if peft is missing, refuses the adapter, or the adapter belongs to another model.
    """
    peft = _peft(adapter)
    try:
        config = peft.PeftConfig.from_pretrained(adapter)
        config.base_model_name_or_path = None  # it is this model, whatever the folder was called
        wrapped = peft.get_peft_model(model, config)
        loaded = wrapped.load_adapter(str(adapter), "default")
    # PEFT raises whatever its configuration, torch or transformers do.
    except Exception as error:
        raise _does_not_fit(adapter, " ".join(str(error).split())[:500]) from error
    _require_all(adapter, [key for key in loaded.missing_keys if ".lora_" in key], list(loaded.unexpected_keys))
    return wrapped


def require_fitting_adapter(model: Any, adapter: Path) -> None:
    """Compare the adapter's keys and shapes with a model whose parameters have no memory.

    Raises:
        MirError: as ``merged``.
    """
    peft = _peft(adapter)
    try:
        config = copy.deepcopy(peft.PeftConfig.from_pretrained(adapter))
        config.base_model_name_or_path = None
        config.init_lora_weights = True  # no other way to begin works without values
        wrapped = peft.get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
        state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        expected = {key: tuple(value.shape) for key, value in state.items()}
        places = set(wrapped.state_dict())  # embeddings that were resized are saved whole, unasked
    except Exception as error:
        raise _does_not_fit(adapter, " ".join(str(error).split())[:500]) from error
    stored = {key: weight.shape for key, weight in open_weight_file(adapter_file(adapter)).items()}
    if not expected.keys() & stored.keys():
        return  # saved under another version's names of modules, which PEFT translates when it loads
    wrong = [key for key, shape in stored.items() if key in expected and expected[key] != shape]
    if wrong:
        raise _does_not_fit(adapter, f"other shapes of {listed(wrong)}")
    _require_all(adapter, sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys() - places))


def _require_all(adapter: Path, missing: list[str], unexpected: list[str]) -> None:
    if missing:
        raise _does_not_fit(adapter, f"no weights for {listed(missing)}")
    if unexpected:
        raise _does_not_fit(adapter, f"the base has no place for {listed(unexpected)}")


def _does_not_fit(adapter: Path, reason: str) -> MirError:
    return MirError(
        f"the adapter {adapter} cannot be merged into its base: {reason}. Name the base it was trained on with --base, "
        "or copy the adapter again."
    )


def _peft(adapter: Path) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MirError(f"{adapter} is a PEFT adapter, but peft is not installed: `pip install peft`.") from error
    return peft
