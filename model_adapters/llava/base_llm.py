"""Which language model a checkpoint of the LLaVA layout has. Imports neither torch nor transformers.

Forks name their models ``llava_qwen``, ``bunny-phi3`` or ``mgm_gemma``: a fork's name, and that of the language model,
which some forks keep over several generations. Then the weights tell which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FORKS = re.compile(r"^(llava|bunny|mgm|mini_gemini|share4v|mobilevlm|tiny_llava)(?:[_-]|$)")
# A fork's bare name, and names that are not transformers'.
_NAMES = {"": "llama", "stablelm_epoch": "stablelm"}
# Name → a part of a layer that only the later generation has → that generation; else the name or its replacement.
_GENERATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen": (("self_attn.q_norm.", "qwen3"), ("", "qwen2")),
    "qwen2": (("self_attn.q_norm.", "qwen3"), ("", "qwen2")),
    "phi": (("self_attn.qkv_proj.", "phi3"), ("", "phi")),
    "gemma": (("pre_feedforward_layernorm.", "gemma2"), ("", "gemma")),
}
_LAYER = "base_llm.model.layers.0."


def llm_kind(model_type: str, names: Iterable[str] = ()) -> str:
    """The language model's model_type in transformers, from the checkpoint's.

    Args:
        names: of the weights, by which the generations of a family are told apart.

    >>> llm_kind("llava"), llm_kind("bunny-phi3"), llm_kind("mistral")
    ('llama', 'phi3', 'mistral')
    """
    name = _FORKS.sub("", model_type)
    name = _NAMES.get(name, name)
    parts = [part.removeprefix(_LAYER) for part in names if part.startswith(_LAYER)]
    for marker, kind in _GENERATIONS.get(name, ()):
        if not marker or any(part.startswith(marker) for part in parts):
            return kind
    return name
