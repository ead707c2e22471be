"""Configuration, layer distances and results as plain numbers, to and from JSON; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.strict_json import is_number, json_document, read_as

Outliers = Literal["replace", "remove", "none"]
SCHEMA_VERSION = 2  # 1 knows no ``place`` and no ``inputs``
# Whose sums over the layers have these logarithms.
_DISTANCE_OF = {
    "mir": "distance",
    "mir_published": "distance_published",
    "mir_published_upper": "distance_published_upper",
}
# In the folder of a checkpoint's result: the result, and the finished layers of one that is being measured.
RESULT_NAME, PARTIAL_NAME = "mir.json", "mir.partial.jsonl"


@dataclass(frozen=True)
class MirConfig:
    """The protocol of a measurement; the defaults are the paper's.

    Attributes:
        outliers: what to do with rows whose norm is far from the median norm. "replace": the row becomes the
            coordinate-wise median and still counts (the published program); "remove": the row is dropped (the
            paper's text); "none".
        n_sigma: threshold, in unbiased standard deviations of the norm.
        normalize: text-centric normalization on or off.
    """

    outliers: Outliers = "replace"
    n_sigma: float = 3.0
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.outliers not in get_args(Outliers):
            raise MirError(f"outliers is {self.outliers!r}; expected 'replace', 'remove' or 'none'.")
        if not self.n_sigma > 0:
            raise MirError(f"n_sigma is {self.n_sigma}; expected a positive number.")


@dataclass(frozen=True)
class LayerDistance:
    """All numbers of one layer. Distances and traces are squared lengths in units of ``1/scale``.

    Attributes:
        layer: 1..L; the last is taken after the final norm.
        distance: squared Fréchet distance with the exact trace term.
        distance_published: the same with Tr(ΣvΣt) in place of the trace term.
        distance_published_upper: the same with no trace term.
        mean_term: squared distance of the two means.
        trace_vision, trace_text: trace of the covariance.
        trace_term: Tr((ΣvΣt)^½).
        trace_product: Tr(ΣvΣt).
        trace_route: how the trace term was computed: "cross", "gram", "cholesky", "eigh" or "polar".
        n_vision_tokens, n_text_tokens: tokens of all samples, outliers included.
        n_vision_outliers, n_text_outliers: how many of them are outliers.
        scale: text-centric scale α; 1 without normalization.
        mean_norm_vision, mean_norm_text: mean L2 norm, before scaling.
        norm_ratio: mean norm of vision tokens over that of text tokens.
        mean_cosine: cosine of the angle between the means; null where one is zero.
        effective_rank_vision, effective_rank_text: participation ratio (Tr Σ)² / Tr(Σ²), 1 for a line, d at most.
        length_vision, length_text: root-mean-square length of a token after outlier handling, (‖μ‖² + Tr Σ)^½. Null in
            results of earlier versions, as are the two below.
        longest_vision, longest_text: part of the sum of squared lengths, after outlier handling, that the longest 5 %
            of the tokens have; null where all have length 0.
    """

    layer: int
    distance: float
    distance_published: float
    distance_published_upper: float
    mean_term: float
    trace_vision: float
    trace_text: float
    trace_term: float
    trace_product: float
    trace_route: str
    n_vision_tokens: int
    n_text_tokens: int
    n_vision_outliers: int
    n_text_outliers: int
    scale: float
    mean_norm_vision: float
    mean_norm_text: float
    norm_ratio: float
    mean_cosine: float | None
    effective_rank_vision: float
    effective_rank_text: float
    length_vision: float | None = None
    length_text: float | None = None
    longest_vision: float | None = None
    longest_text: float | None = None

    @property
    def length_term(self) -> float | None:
        """Squared difference of the two lengths: no two distributions with these lengths are closer."""
        if self.length_vision is None or self.length_text is None:
            return None
        return min((self.length_vision - self.length_text) ** 2, self.distance)

    @property
    def distance_at_equal_length(self) -> float | None:
        """The distance if both modalities had length 1; from 0 to 4, and 2 where they have nothing in common."""
        if self.length_term is None or not self.length_vision or not self.length_text:
            return None
        return (self.distance - self.length_term) / (self.length_vision * self.length_text)


@dataclass(frozen=True)
class Look:
    """What a measurement that may stop early had on fewer samples; the fields are those of ``MirResult``."""

    n_samples: int
    mir: float
    mir_published: float | None
    mir_published_upper: float | None
    fingerprints: Mapping[str, str]
    inputs: Mapping[str, Any]
    samples: Mapping[str, Any]
    uncertainty: Mapping[str, Any]
    mir_at_equal_length: float | None = None
    length_share: float | None = None
    fragile: tuple[str, ...] = ()


@dataclass(frozen=True)
class MirResult:
    """One measurement of one checkpoint: values, how they were obtained, and what they may be compared with.

    Attributes:
        checkpoint: path or hub name it is filed under, as given.
        place: the folder that name meant when it was measured, absolute and without links; empty for anything else.
        family: name of the adapter that loaded it.
        mir: with the exact trace term; dimensionless, lower is better.
        mir_published: what the published program's default mode amounts to, Tr(ΣvΣt) in place of the trace term; null
            where the distances then sum to less than 0.
        mir_published_upper: with no trace term at all; the published program's number lies between these two.
        mir_at_equal_length: the same as ``mir`` after each modality is divided by its own root-mean-square length at
            each layer: a diagnostic beside it. Null in results of earlier versions, as are the two below.
        length_share: part of the sum of distances that the difference of the two lengths accounts for, 0 to 1.
        fragile: sentences on why this value may move more than its standard error says; empty where nothing was found.
        n_samples: image-text pairs.
        estimator: of ``mir``; always "exact".
        config: the protocol.
        fingerprints: hashes of ``samples``, ``protocol``, ``checkpoint``, ``versions`` and ``inputs``, and from the
            command line ``request``, all that was asked for. ``checkpoint`` is that of all files it was loaded from, or
            begins with "memory:" for weights that no file holds. Results whose samples or protocol differ are not
            comparable, while versions are only recorded.
        inputs: what reached the model. ``token_ids``, ``positions`` (of vision and text tokens) and ``pixels`` (as
            prepared, before they take the model's dtype) each hold one digest for every sample, in one line; then
            ``pixel_shapes``, ``n_vision_tokens``, ``n_text_tokens``, ``n_cut_texts``, ``weights_dtype``,
            ``compute_dtype``, ``attention``, and ``host_settings``: what a host prepares otherwise than the checkpoint
            says, name → the checkpoint's value and the host's. Empty in results of schema 1.
        layers: from the first decoder layer to the last.
        facts: what was recognised and chosen at loading: paths, dtype, vision tower, projector, prompt template.
        samples: where they come from and which were chosen.
        engine: how features were computed: ``path`` is "breadth-first" or "depth-first", with the ``reason``.
        timing: seconds by phase, and ``total``.
        peak_memory: bytes; ``host`` and each accelerator.
        uncertainty: ``method``, ``confidence``, ``standard_error``, ``low`` and ``high`` of ``mir``, the same of every
            layer's distance in ``layers``, and the influences of the samples, in their order, as one line of numbers.
            Samples that share an image or a text are one of ``n_groups`` groups, with one influence.
            Empty if not requested; ``not_computed`` holds the reason where it could not be computed.
        looks: the same on fewer samples, ascending, where ``--precision`` took more step by step; without layers.
        planned: the numbers of samples at which it could have stopped, the last being all; empty without
            ``--precision``.
        host: the program that measured it: "mir", "lmms-eval", "vlmevalkit" or "training".
        versions: of Python and of the packages that can move a result.
        created: date and time, UTC.
        schema_version: of this document.
    """

    checkpoint: str
    family: str
    mir: float
    mir_published: float | None
    mir_published_upper: float | None
    n_samples: int
    estimator: str
    config: MirConfig
    fingerprints: Mapping[str, str]
    layers: tuple[LayerDistance, ...]
    place: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    uncertainty: Mapping[str, Any] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    planned: tuple[int, ...] = ()
    host: str = "mir"
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    mir_at_equal_length: float | None = None
    length_share: float | None = None
    fragile: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def at(self, n_samples: int) -> MirResult:
        """What was known on the first so many samples; layers only of the last look.

        Raises:
            KeyError: if there was no such look.
        """
        if n_samples == self.n_samples:
            return self
        for number, look in enumerate(self.looks):
            if look.n_samples == n_samples:
                fields = {one.name: getattr(look, one.name) for one in dataclasses.fields(look)}
                return dataclasses.replace(self, **fields, layers=(), looks=self.looks[:number])
        raise KeyError(n_samples)

    def as_look(self) -> Look:
        """The part that is kept when more samples are measured."""
        spread = {name: value for name, value in self.uncertainty.items() if name != "layers"}
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(Look)}
        return Look(**{**fields, "uncertainty": spread})

    @property
    def numbers_of_samples(self) -> tuple[int, ...]:
        """On which it is known, ascending; the last is ``n_samples``."""
        return (*(look.n_samples for look in self.looks), self.n_samples)

    def to_json(self) -> str:
        """The result as a JSON document; NaN and infinity are an error, never a bare token."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = RESULT_NAME) -> MirResult:
        """Read what ``to_json`` wrote; fields added by later versions are ignored.

        Raises:
            MirError: if the text is no JSON, lacks a required field, holds one of another kind or a number that is not
                finite, or contradicts itself; names ``source``.
        """
        try:
            data = json_document(text)
            result = read_as(cls, data)
            _hold_together(result)
        except (ValueError, TypeError, MirError) as error:
            raise MirError(f"{source} is not a complete MIR result ({error}). Measure again with `mir run`.") from error
        return result

    def save(self, path: Path) -> Path:
        """Write the JSON document; a reader sees the old file or the whole new one, never a part."""
        write_atomically(path, self.to_json())
        return path

    @classmethod
    def load(cls, path: Path) -> MirResult:
        """Read a ``mir.json``, or that of a folder. Raises MirError naming the file."""
        path = result_file(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MirError(f"there is no {path}. Name a mir.json or its folder; `mir run` makes one.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise MirError(f"cannot read {path}: {error}. Check its permissions, or measure again.") from error
        return cls.from_json(text, source=str(path))


def result_file(path: Path) -> Path:
    """The ``mir.json`` of a folder; any other path is that of a result itself."""
    return path / RESULT_NAME if path.is_dir() else path


def is_filed_under(name: str, place: str, checkpoint: Path) -> bool:
    """Whether what a file says of its checkpoint means this one.

    Args:
        name: as given when it was measured. Alone it is taken from here if it is relative.
        place: the folder that this name meant then; empty where the file does not say.
    """
    if place and checkpoint.is_dir():
        return place == str(checkpoint.resolve())
    return os.path.abspath(place or name) == os.path.abspath(checkpoint)  # noqa: PTH100 - a file may name anything


_Kinds = Mapping[str, Any]
_KINDS_OF_INPUTS: _Kinds = {
    **dict.fromkeys(("token_ids", "pixels", "weights_dtype", "compute_dtype", "attention"), str | None),
    **dict.fromkeys(("n_vision_tokens", "n_text_tokens"), int),
    "n_cut_texts": int | None,
    "positions": str,
    "pixel_shapes": dict,
    "host_settings": dict,
}


def _require_kinds(values: Mapping[str, Any], where: str, kinds: _Kinds) -> None:
    for name, kind in kinds.items():
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ValueError(f"{where}.{name} is {values[name]!r:.60}")


def _hold_together(result: MirResult) -> None:
    """Raise ValueError if the parts of a result contradict each other: it was damaged, or changed by hand."""
    numbers = [layer.layer for layer in result.layers]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"its layers are {numbers}, not 1, 2, ... to the last")
    if result.schema_version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {result.schema_version}, this program knows {SCHEMA_VERSION} at most: update it"
        )
    for name in ("mir", "mir_published", "mir_published_upper"):
        told, total = getattr(result, name), math.fsum(getattr(layer, _DISTANCE_OF[name]) for layer in result.layers)
        expected = math.log10(total) if total > 0 else -math.inf
        if told is not None and not math.isclose(told, expected, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"its {name} is {told}, but that of its layers {expected}")
    for layer in result.layers:
        counts = (layer.n_vision_tokens, layer.n_text_tokens, layer.n_vision_outliers, layer.n_text_outliers)
        if min(counts) < 0:
            raise ValueError(f"layer {layer.layer} has {min(counts)} tokens or outliers")
    if not result.checkpoint.strip():
        raise ValueError("it names no checkpoint")
    numbers_of_samples = result.numbers_of_samples
    if numbers_of_samples[0] < 1 or list(numbers_of_samples) != sorted(set(numbers_of_samples)):
        raise ValueError(f"n_samples is {', '.join(map(str, numbers_of_samples))}")
    for n_samples in numbers_of_samples:
        _look_holds_together(result.at(n_samples), len(numbers))


def _look_holds_together(result: MirResult, n_layers: int) -> None:
    """The same for what is known on one number of samples."""
    _require_kinds(result.inputs, "inputs", _KINDS_OF_INPUTS)
    for name, values in result.inputs.get("host_settings", {}).items():
        if not isinstance(values, list | tuple) or len(values) != 2:
            raise ValueError(f"inputs.host_settings.{name} is {values!r:.60}, not two values")
    spread = result.uncertainty
    for name in ("standard_error", "low", "high"):
        if name in spread and not is_number(spread[name]):
            raise ValueError(f"uncertainty.{name} is {spread[name]!r:.60}")
    if "standard_error" in spread and not (
        spread["standard_error"] >= 0 and {"low", "high"} <= spread.keys() and spread["low"] <= spread["high"]
    ):
        raise ValueError("its uncertainty has no interval, or one that is the wrong way round")
    _require_kinds(spread, "uncertainty", {"layers": list | tuple, "influences": str})
    of_layers = spread.get("layers") or [{}] * n_layers
    if len(of_layers) != n_layers or not all(isinstance(one, dict) for one in of_layers):
        raise ValueError(f"its uncertainty is that of {len(of_layers)} layers, not {n_layers}")
    for one in (spread, *of_layers):
        _require_kinds(one, "uncertainty", {"influences": str})
        influences = [float(number) for number in one.get("influences", "").split()]
        n_groups = spread.get("n_groups", result.n_samples)
        if influences and (len(influences) != n_groups or not all(map(math.isfinite, influences))):
            raise ValueError(f"{len(influences)} influences of {n_groups} groups of samples, or some are not finite")
