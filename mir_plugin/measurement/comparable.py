"""In what two results differ besides their values: what forbids to rank them together, and what is only told.

Results of older schemas are compared by what they know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mir_plugin.files.fingerprint import fingerprint
from mir_plugin.results import MirResult

OWN_INPUTS = "own"  # prepared as the checkpoint says, and whole
_LONGEST_VALUE = 60


def on_common_samples(a: MirResult, b: MirResult) -> tuple[MirResult, MirResult]:
    """Both on the samples that both were measured on, the most of them; as they are if there are none such.

    A measurement with ``--precision`` knows its values on fewer samples too.
    """
    for n_samples in sorted(set(a.numbers_of_samples) & set(b.numbers_of_samples), reverse=True):
        ours, theirs = a.at(n_samples), b.at(n_samples)
        if _same_samples(ours, theirs):
            return ours, theirs
    return a, b


def protocol_differences(a: MirResult, b: MirResult, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """What of samples, protocol, dtype, cut texts and host settings is not the same, in words.

    Versions and checkpoints may differ, and so may what a checkpoint's own processor makes of the samples.

    Args:
        names: what to call the two.
    """
    a, b = on_common_samples(a, b)
    differing = []
    if not _same_samples(a, b):
        differing.append(f"samples ({_samples(a)} and {_samples(b)})")
    if a.fingerprints.get("protocol") != b.fingerprints.get("protocol"):
        one, other = _protocol(a), _protocol(b)
        names_of_parts = [name for name in one if one[name] != other[name]]
        differing += [f"{name} ({one[name]!r} and {other[name]!r})" for name in names_of_parts] or ["protocol"]
        if "prompt template" in names_of_parts and _dated(a) and _dated(b):
            differing[-1] += ", which writes the current date: measure both on one day"
    ours, theirs = dtype_of(a), dtype_of(b)
    if ours and theirs and ours != theirs:
        differing.append(f"dtype ({ours} and {theirs})")
    if inputs_of(a) != inputs_of(b):
        differing.append(f"inputs ({names[0]}: {_inputs_in_words(a)}; {names[1]}: {_inputs_in_words(b)})")
    return differing


def allowed_differences(a: MirResult, b: MirResult, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """Sentences on what reached the two models differently because the checkpoints differ.

    Args:
        names: what to call the two.
    """
    a, b = on_common_samples(a, b)
    one, other, (first, second) = _known(a), _known(b), names
    told = []
    if one["attention"] and other["attention"] and one["attention"] != other["attention"]:
        told.append(f"{second} was computed with {other['attention']} attention, {first} with {one['attention']}.")
    quantised = [result.facts.get("quantization") for result in (a, b)]
    if quantised[0] != quantised[1]:
        held = [f"quantised ({how})" if how else "not quantised" for how in quantised]
        told.append(f"The weights of {first} are {held[0]}, those of {second} {held[1]}.")
    if not _same_samples(a, b):
        return told
    vision, other_vision = one["n_vision_tokens"], other["n_vision_tokens"]
    n_pixels = _n_other(one["pixels"], other["pixels"])
    if vision != other_vision:
        sizes = "at other image sizes" if one["pixel_shapes"] != other["pixel_shapes"] else "with other image tokens"
        told.append(f"{second} was measured {sizes}: {other_vision:,} vision tokens instead of {vision:,}.")
    elif n_pixels:
        told.append(
            f"{second} was given other pixels than {first} in {n_pixels} of {b.n_samples} samples"
            f"{_image_settings(a, b)}."
        )
    if _same_template(a, b) and _n_other(one["token_ids"], other["token_ids"]) and vision == other_vision:
        texts = one["n_text_tokens"], other["n_text_tokens"]
        amount = f": {texts[1]:,} text tokens instead of {texts[0]:,}" if texts[0] != texts[1] else ""
        told.append(f"{second}'s tokenizer divides the texts into other tokens than {first}'s{amount}.")
    return told


def dtype_of(result: MirResult) -> str:
    """In which dtype weights are held and hidden states computed; empty where a result does not say."""
    known = _known(result)
    weights, computed = known["weights_dtype"] or "", known["compute_dtype"] or ""
    return weights if computed in (weights, "") else f"{weights}, computed in {computed}"


def inputs_of(result: MirResult) -> str:
    """What was done to the samples that the checkpoint does not ask for: "own" for nothing, else a digest with words.

    Results with the same value may be ranked together.
    """
    known = _known(result)
    parts = []
    if known["n_cut_texts"]:
        # Cut alike are only those whose tokens are the same.
        parts.append(f"{known['n_cut_texts']} texts cut ({_digest(known['token_ids'], known['positions'])})")
    parts += [f"{name} {_value(used)}" for name, (_, used) in sorted(known["host_settings"].items())]
    return "; ".join(parts) or OWN_INPUTS


def _inputs_in_words(result: MirResult) -> str:
    known = _known(result)
    parts = []
    if known["n_cut_texts"]:
        parts.append(
            f"{known['n_cut_texts']} of {result.n_samples} texts cut off, {known['n_text_tokens']:,} text tokens left"
        )
    parts += [
        f"{name} {_value(used)} by the host instead of {_value(own)}"
        for name, (own, used) in sorted(known["host_settings"].items())
    ]
    whole = f"whole texts, {known['n_text_tokens']:,} text tokens, as the checkpoint's processor makes them"
    return ", ".join(parts) or whole


def _known(result: MirResult) -> Mapping[str, Any]:
    """What a result says reached the model; an older one knows dtype, attention and numbers of tokens."""
    last = result.layers[-1] if result.layers else None
    return {
        "token_ids": None,
        "positions": None,
        "pixels": None,
        "pixel_shapes": {},
        "n_vision_tokens": last.n_vision_tokens if last else 0,
        "n_text_tokens": last.n_text_tokens if last else 0,
        "n_cut_texts": None,
        "weights_dtype": result.facts.get("dtype"),
        "compute_dtype": result.facts.get("dtype"),
        "attention": result.facts.get("attention"),
        "host_settings": {},
        **result.inputs,
    }


def _same_samples(a: MirResult, b: MirResult) -> bool:
    return a.fingerprints.get("samples") == b.fingerprints.get("samples")


def _same_template(a: MirResult, b: MirResult) -> bool:
    return a.facts.get("prompt_template") == b.facts.get("prompt_template")


def _dated(result: MirResult) -> bool:
    return bool(result.facts.get("prompt_has_date"))


def _n_other(one: str | None, other: str | None) -> int:
    """In how many samples two lines of digests differ; 0 where one is unknown."""
    if one is None or other is None:
        return 0
    # Not strict: a file that was edited by hand may have lost digests.
    return sum(ours != theirs for ours, theirs in zip(one.split(), other.split(), strict=False))


def _image_settings(a: MirResult, b: MirResult) -> str:
    ours, theirs = a.facts.get("image_settings") or {}, b.facts.get("image_settings") or {}
    differing = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    named = [f"{name} {_value(theirs[name])} instead of {_value(ours[name])}" for name in differing]
    if named:
        return f": its image processor has {', '.join(named)}"
    classes = [result.facts.get("image_processor_class") for result in (b, a)]
    return f": prepared by {classes[0]} instead of {classes[1]}" if classes[0] != classes[1] and all(classes) else ""


def _protocol(result: MirResult) -> dict[str, Any]:
    return {
        "estimator": result.estimator,
        **dataclasses.asdict(result.config),
        "prompt template": result.facts.get("prompt_template"),
    }


def _samples(result: MirResult) -> str:
    return f"{result.n_samples} of {result.samples.get('source', 'unknown source')}"


def _value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _digest(*lines: str | None) -> str:
    return fingerprint(lines)[:8]
