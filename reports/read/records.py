"""Immutable records that the readers return: scores, MIR measurements, runs, problems and more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from mir_plugin.results import LayerDistance, MirResult
from mir_plugin.robustness.results import Robustness
from mir_plugin.selection.verdict_text import standing

UNSTATED = "unstated"

Severity = Literal["error", "warning", "note"]
ProblemKind = Literal["unreadable", "unmatched", "incomparable", "missing", "superseded", "converted", "linked"]


@dataclass(frozen=True)
class CheckpointRef:
    """What a source says about the checkpoint it measured; records whose keys overlap belong to one checkpoint.

    Attributes:
        label: the shortest honest name, shown when the configuration gives no display name.
        keys: identities such as ``path:/models/a``, ``weights:1f3c…`` or ``vlmevalkit:llava_v1.5_7b``; at least one.
        root: folder of the results in which a relative name stands whose working directory nobody wrote down.
        moved_link: a link in the path that was changed after the record was made, so that it leads elsewhere now.
    """

    label: str
    keys: tuple[str, ...]
    root: str = ""
    moved_link: str = ""


@dataclass(frozen=True)
class Origin:
    """A checkpoint that another one was trained from, as the other one's folder says.

    Attributes:
        checkpoint: the one that was trained.
        keys: of the one it was trained from, the likeliest first; mostly nothing among the sources has any of them.
        said: file, key and value.
    """

    checkpoint: CheckpointRef
    keys: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class Score:
    """One number of one benchmark, as the host tool wrote it.

    Attributes:
        checkpoint: whose score it is.
        host: "lmms-eval", "vlmevalkit" or "table".
        task: the benchmark's name in that host, for example ``mmbench_en_dev``.
        metric: the field that was read, for example ``average,none`` or ``dev|Overall``.
        value: finite number on the host's own scale.
        complete: false when the run saw only a part of the benchmark (``--limit``, ``--offset``).
        date: ISO 8601 text, sortable; empty when the source does not say.
        run_id: the Run it comes from.
    """

    checkpoint: CheckpointRef
    host: str
    task: str
    metric: str
    value: float
    complete: bool = True
    n_samples: int | None = None
    date: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Comparability:
    """What must agree before two MIR values may share a ranking. ``unstated`` where the source does not say."""

    estimator: str = UNSTATED
    samples: str = UNSTATED
    protocol: str = UNSTATED
    dtype: str = UNSTATED
    inputs: str = UNSTATED

    def differing(self, other: Comparability) -> tuple[str, ...]:
        """Names of the parts that differ, in reading order."""
        return tuple(name for name in COMPARABILITY_PARTS if getattr(self, name) != getattr(other, name))


COMPARABILITY_PARTS = tuple(part.name for part in fields(Comparability))
"""What must agree, in reading order; also the headings of tables."""
KNOWN_TO_FEW = ("dtype", "inputs")
"""Of these, what tables and older results do not state: they are compared by what they know."""


@dataclass(frozen=True)
class Measurement:
    """One MIR value of one checkpoint, with everything needed to compare and to plot it."""

    checkpoint: CheckpointRef
    mir: float
    comparability: Comparability = Comparability()
    mir_published: float | None = None
    mir_published_upper: float | None = None
    mir_standard_error: float | None = None
    mir_interval: tuple[float, float] | None = None
    mir_at_equal_length: float | None = None
    length_share: float | None = None
    fragile: tuple[str, ...] = ()
    n_samples: int | None = None
    layers: tuple[LayerDistance, ...] = ()
    date: str = ""
    run_id: str = ""
    result: MirResult | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Run:
    """Provenance: one file, or one run directory, that something was read from."""

    run_id: str
    host: str
    checkpoint: str
    source: str
    date: str = ""
    tasks: tuple[str, ...] = ()
    complete: bool = True
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A finished picture that a page shows unchanged.

    Attributes:
        title: what it belongs to: a checkpoint, or the name of a study.
        caption: what it shows.
        png: the file's bytes.
        source: the file.
        keys: identities of the checkpoint, whose display name a report puts in the title's place; empty for others.
    """

    title: str
    caption: str
    png: bytes
    source: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerdictRow:
    """One checkpoint of a sweep.

    Attributes:
        behind: its MIR minus that of ``against``, over the same samples; None for the best of all.
        low, high: interval of that difference.
        tied: whether it is not shown to be more than the tolerance behind; None if unknown.
        within: whether it is shown to be within the tolerance; None if unknown.
        tolerance: of the sweep.
        against: the lowest of its run, for that one the lowest of all; empty for the lowest of all.
    """

    name: str
    run: str
    step: int | None
    mir: float
    behind: float | None
    low: float | None
    high: float | None
    tied: bool | None
    within: bool | None = None
    tolerance: float = 0.0
    against: str = ""

    @property
    def standing(self) -> str:
        """A short description, in the words of the sweep's own table."""
        return "best" if self.behind is None else standing(self.tied, self.within, self.tolerance)


@dataclass(frozen=True)
class VerdictRun:
    """The best checkpoint of one run, where MIR goes along it, and the verdict along its steps."""

    run: str
    best: VerdictRow
    trend: str
    saturated_at: str
    sentence: str = ""


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a sweep as the sweep wrote it, so that a report agrees with the sweep's own table."""

    sentence: str
    recommended: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[VerdictRow, ...]
    runs: tuple[VerdictRun, ...]
    source: str


@dataclass(frozen=True)
class Problem:
    """Something that a report tells its reader: where, what, and what to do about it."""

    severity: Severity
    kind: ProblemKind
    where: str
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class ParsedSources:
    """Everything read from all sources, before checkpoints are joined."""

    scores: tuple[Score, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    runs: tuple[Run, ...] = ()
    problems: tuple[Problem, ...] = ()
    pictures: tuple[Picture, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    origins: tuple[Origin, ...] = ()

    @classmethod
    def total(cls, parts: Iterable[ParsedSources]) -> ParsedSources:
        """All parts as one."""
        parts = tuple(parts)
        return cls(
            tuple(score for part in parts for score in part.scores),
            tuple(measurement for part in parts for measurement in part.measurements),
            tuple(run for part in parts for run in part.runs),
            tuple(problem for part in parts for problem in part.problems),
            tuple(picture for part in parts for picture in part.pictures),
            tuple(report for part in parts for report in part.robustness),
            tuple(verdict for part in parts for verdict in part.verdicts),
            tuple(origin for part in parts for origin in part.origins),
        )
