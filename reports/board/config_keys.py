"""The keys of a report's configuration file; the reference page and the JSON Schema are written from these classes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

Unit = Literal["percent", "points"]
Scale = Literal["fraction", "percent", "points"]


def keys_of(cls: type) -> tuple[str, ...]:
    """The keys that a mapping of this kind may have."""
    return tuple(one.name for one in fields(cls))


@dataclass(frozen=True)
class ModelKeys:
    """One checkpoint.

    Attributes:
        match: paths, hub names, VLMEvalKit model names or names in tables under which it is known; what matches any of
            them becomes one row.
        name: what to call it; changes nothing else.
        group: heading that it stands under; correlations are also computed for each group.
        step: training step, where its name does not say it.
    """

    match: str | list[str]
    name: str = ""
    group: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Link:
    """MIR before fine-tuning beside scores after it, as ``--link PRETRAIN=SFT``.

    Attributes:
        pretrained: path or name of the checkpoint whose MIR counts.
        finetuned: path or name of the checkpoint whose scores count.
    """

    pretrained: str
    finetuned: str


@dataclass(frozen=True)
class HostKeys:
    """Where a host tool writes a benchmark.

    Attributes:
        task: name of the task or data set there.
        metric: lmms-eval: the metric before the comma; VLMEvalKit: ``split|column``, ``*`` for any split. Several,
            joined by `` + ``, mean their mean.
        scale: of the number there; without it the benchmark's unit.
    """

    task: str
    metric: str
    scale: Scale = "percent"


@dataclass(frozen=True)
class BenchmarkKeys:
    """A benchmark that is not known yet, or another definition of one that is.

    Attributes:
        key: short name, as in ``benchmarks``, ``average`` and ``weights``.
        name: heading; without it the key.
        unit: percent (0 to 100) or points.
        to_percent: factor to the percentage that enters the average; 0.05 for MME's 2000 points.
        higher_is_better: direction of the best value.
        averaged: whether it may enter the average; without it true for percent.
        columns: further headings under which tables have it.
        lmms_eval, vlmevalkit: where that host writes it.
    """

    key: str
    name: str = ""
    unit: Unit = "percent"
    to_percent: float = 1.0
    higher_is_better: bool = True
    averaged: bool = True
    columns: list[str] = field(default_factory=list)
    lmms_eval: HostKeys | None = None
    vlmevalkit: HostKeys | None = None


@dataclass(frozen=True)
class ConfigKeys:
    """The file given to ``mir report --config``. All keys may be left out.

    Attributes:
        title: of the report.
        models: joins, names, groups and steps of checkpoints.
        links: pre-trained checkpoints, and what was fine-tuned from them.
        benchmarks: keys of the benchmarks to show, in this order; without it all that have scores.
        average: what the average is over: paper-7, paper-9, openvlm-8, or a list of keys. As ``--average``.
        weights: key of a benchmark → its weight in the average, in place of ``average``.
        define: benchmarks of one's own.
        formats: which of xlsx, html, csv, md, tex and figures to write; without it all. As ``--formats``.
        notes: sentences to show with the report's own warnings.
    """

    title: str = "MIR and benchmark scores"
    models: list[ModelKeys] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    benchmarks: list[str] = field(default_factory=list)
    average: str | list[str] = "paper-7"
    weights: dict[str, float] = field(default_factory=dict)
    define: list[BenchmarkKeys] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
