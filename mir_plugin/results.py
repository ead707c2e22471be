"""What carries plain numbers: configuration, layer distances, results. Standard library only, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mir_plugin.errors import MirError

Outliers = Literal["replace", "remove", "none"]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MirConfig:
    """The protocol of a measurement; the defaults are the paper's.

    Attributes:
        outliers: what happens to rows whose norm is far from the median norm. "replace": the row becomes the
            coordinate-wise median and still counts (the published program); "remove": the row is dropped (the
            paper's text); "none".
        n_sigma: threshold, in unbiased standard deviations of the norm.
        normalize: text-centric normalization on or off.
    """

    outliers: Outliers = "replace"
    n_sigma: float = 3.0
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.outliers not in ("replace", "remove", "none"):
            raise MirError(f"outliers is {self.outliers!r}; expected 'replace', 'remove' or 'none'.")
        if not self.n_sigma > 0:
            raise MirError(f"n_sigma is {self.n_sigma}; expected a positive number.")


@dataclass(frozen=True)
class LayerDistance:
    """Everything known about one layer. Distances and traces are squared lengths in units of ``1/scale``."""

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


@dataclass(frozen=True)
class MirResult:
    """One measurement of one checkpoint: values, how they came about, and what they may be compared with.

    ``mir`` uses the exact trace term. ``mir_published`` is what the published program's default mode amounts to, and
    its recorded number lies between it and ``mir_published_upper`` (no trace term at all).
    ``fingerprints`` holds hashes for ``samples``, ``protocol``, ``checkpoint`` and ``versions``, and from the command
    line ``request`` (all that was asked for); results whose samples or protocol differ are not comparable, while
    versions are only recorded.
    ``uncertainty`` holds ``method``, ``confidence``, ``standard_error``, ``low`` and ``high`` of ``mir``, the same of
    every layer's distance in ``layers``, and the influences of the samples, in their order, as one line of numbers;
    it is empty when it was not asked for, and holds the reason as ``not_computed`` when it could not be had.
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
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    uncertainty: Mapping[str, Any] = field(default_factory=dict)
    host: str = "mir"
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The result as a JSON document; NaN and infinity are an error, never a bare token."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "mir.json") -> MirResult:
        """Read what ``to_json`` wrote; fields added by later versions are ignored.

        Raises:
            MirError: if the text is no JSON, or lacks a required field; names ``source``.
        """
        try:
            data = json.loads(text)
            data["config"] = MirConfig(**_known(MirConfig, data["config"]))
            data["layers"] = tuple(LayerDistance(**_known(LayerDistance, layer)) for layer in data["layers"])
            return cls(**_known(cls, data))
        except (ValueError, TypeError, KeyError) as error:
            raise MirError(f"{source} is not a complete MIR result ({error}). Measure again with `mir run`.") from error

    def save(self, path: Path) -> Path:
        """Write the JSON document; a reader sees the old file or the whole new one, never a part."""
        write_atomically(path, self.to_json())
        return path

    @classmethod
    def load(cls, path: Path) -> MirResult:
        """Read a ``mir.json``. Raises MirError naming the file."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MirError(f"cannot read {path}: {error}") from error
        return cls.from_json(text, source=str(path))


def write_atomically(path: Path, text: str) -> None:
    """Write text so that no reader and no kill leaves a part of it behind."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name next to ``path`` to write to; what is written takes its place when the ``with`` block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {name: value for name, value in data.items() if name in names}
