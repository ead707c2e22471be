"""From the keys of a checkpoint to the parameters of a module: ordered key rules. Imports no torch.

A family describes its checkpoints as data::

    RULES = (
        KeyRule("model.layers.*.self_attn.rotary_emb.", None, "rotary frequencies follow from the config"),
        KeyRule("model.layers.", "base_llm.model.layers."),
        KeyRule("lm_head.", "base_llm.lm_head."),
    )
    module = build_empty(lambda: Model(config))
    assign(module, rename(open_checkpoint_weights(folder), RULES, family="llava-1.5"), device, dtype)

What ``rename`` returns maps parameter names to weights that are still on disk. Mappings of several files are merged as
dictionaries (``{**base, **projector}``), and ``assign`` reads one tensor at a time, into a whole model or, with
``weights_below``, into one decoder layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import Weight

WeightT = TypeVar("WeightT", bound=Weight)
_N_SHOWN = 4


@dataclass(frozen=True)
class KeyRule:
    """Keys that start with ``prefix`` become parameters whose name starts with ``target``; None drops them.

    ``*`` stands for one dotted part, and in ``target`` for the same part, in order:
    ``KeyRule("model.layers.*.moca.", "layers.*.modality_layernorm.")``.
    ``reason`` says why keys are dropped.
    """

    prefix: str
    target: str | None
    reason: str = ""

    def match(self, key: str) -> re.Match[str] | None:
        """The prefix of ``key`` that this rule covers, if it does."""
        return re.match(re.escape(self.prefix).replace(r"\*", r"([^.]+)"), key)


def rename(weights: Mapping[str, WeightT], rules: Sequence[KeyRule], *, family: str) -> dict[str, WeightT]:
    """Parameter name → weight, by the first rule that matches each key; dropped keys are left out.

    Raises:
        MirError: if a key has no rule, or two keys name the same parameter.
    """
    renamed: dict[str, WeightT] = {}
    unknown: list[WeightT] = []
    for key, weight in weights.items():
        for rule in rules:
            match = rule.match(key)
            if match is not None:
                break
        else:
            unknown.append(weight)
            continue
        if rule.target is None:
            continue
        name = (
            reduce(lambda target, part: target.replace("*", part, 1), match.groups(), rule.target) + key[match.end() :]
        )
        if name in renamed:
            raise MirError(
                f"{renamed[name].origin} and {weight.origin} are both the parameter {name!r} of {family}. "
                f"Remove the one that is left over from another save."
            )
        renamed[name] = weight
    if unknown:
        known = ", ".join(rule.prefix for rule in rules)
        raise MirError(
            f"adapter {family} has no rule for {len(unknown)} of {len(weights)} checkpoint keys: "
            f"{listed([weight.origin for weight in unknown])}.\nKnown prefixes: {known}.\n"
            f"The checkpoint belongs to another family or version; `mir adapters` lists the supported ones."
        )
    return renamed


def weights_below(weights: Mapping[str, WeightT], prefix: str) -> dict[str, WeightT]:
    """The part of a mapping whose names start with ``prefix`` (with its dot), under their remaining names."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:_N_SHOWN])
    return shown if len(names) <= _N_SHOWN else f"{shown} and {len(names) - _N_SHOWN} more"
