"""How a language model rotates positions, as its config.json says it in the form of transformers 4 or of 5.

transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes one ``rope_parameters``, for some
models one per kind of layer, and reads both. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROPE_PARAMETERS = "rope_parameters"
_OLD_NAMES = {"su": "longrope", "mrope": "default"}
_EXTENDING = ("llama3", "yarn", "longrope")  # types that need the length of pre-training
_FULL, _SLIDING = "full_attention", "sliding_attention"


def is_newer_form(config: Mapping[str, Any]) -> bool:
    """Whether ``rope_parameters`` counts: transformers 4 carries it along from a base's config and does not read it.

    >>> is_newer_form({"rope_parameters": {"rope_theta": 1e6}})
    True
    >>> is_newer_form({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4, "transformers_version": "4.37.2"})
    False
    """
    by_4 = str(config.get("transformers_version")).startswith("4.")
    return isinstance(config.get(ROPE_PARAMETERS), Mapping) and not (by_4 and config.get("rope_theta") is not None)


def rotations(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Kind of layer → its parameters under the names of transformers 5; what is not stated is left out.

    >>> rotations({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}})
    {'full_attention': {'rope_theta': 1000000.0, 'rope_type': 'linear', 'factor': 2.0}}
    """
    if not is_newer_form(config):
        local = config.get("rope_local_base_freq")
        sliding = {} if local is None else {_SLIDING: {"rope_theta": local, "rope_type": "default"}}
        return {_FULL: _parameters(config, config.get("rope_scaling"))} | sliding
    stated = config[ROPE_PARAMETERS]
    by_layer = {kind: one for kind, one in stated.items() if isinstance(one, Mapping)}
    return {kind: _parameters(config, one) for kind, one in (by_layer or {_FULL: stated}).items()}


def rotation_difference(config: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first parameter that two configs state differently, and both values; None where they mean the same.

    A base of rotation that only one of them states is no difference: the other has its model's default.

    >>> rotation_difference({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})
    ('rope_theta', 10000.0, 1000000.0)
    """
    ours, its = rotations(config), rotations(other)
    for kind in ours.keys() & its.keys():
        for name in sorted(ours[kind].keys() | its[kind].keys()):
            one, another = ours[kind].get(name), its[kind].get(name)
            optional = name in ("rope_theta", "partial_rotary_factor") and None in (one, another)
            if one != another and not optional:
                return name, one, another
    return None


def trained_without_rotation_of(base: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a base states its rotation in a form that the training of this config did not read.

    transformers 4 trains a base that transformers 5 saved with the default of its model, and writes that down.
    """
    return is_newer_form(base) and not is_newer_form(config) and config.get("rope_theta") is not None


def _parameters(config: Mapping[str, Any], scaling: object) -> dict[str, Any]:
    given = dict(scaling) if isinstance(scaling, Mapping) else {}
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    kind = _OLD_NAMES.get(kind, kind)
    around = {name: config.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    inside = {name: given.pop(name, None) for name in around}
    stated = {name: around[name] if inside[name] is None else inside[name] for name in around}
    if kind == "default":
        given.clear()
    elif kind in _EXTENDING:
        length = "original_max_position_embeddings"
        given[length] = config.get(length) or given.get(length) or config.get("max_position_embeddings")
    return {name: value for name, value in {**stated, "rope_type": kind, **given}.items() if value is not None}
