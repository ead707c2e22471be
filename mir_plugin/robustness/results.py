"""What a robustness study found, as plain numbers: standard library only, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.strict_json import json_document, read_as

SCHEMA_VERSION = 1
FILE_NAME = "robustness.json"
CONTENT, TEMPLATE, RELEVANCE, EXPOSURE, NUMBER = "content", "template", "relevance", "exposure", "number"
STUDIES = {
    CONTENT: "image and text content",
    TEMPLATE: "with and without conversation template",
    RELEVANCE: "text that belongs to the image, or to another",
    EXPOSURE: "data seen and not seen in training",
    NUMBER: "number and choice of samples",
}
"""What each study varies."""


@dataclass(frozen=True)
class ConditionResult:
    """MIR of one checkpoint under one condition of one study.

    Attributes:
        checkpoint: its name in the report.
        study: key of the study, see ``STUDIES``.
        condition: what is particular here, for example "photographs + code".
        mir_published: None where the published estimator has no value.
        low, high: 95 % interval of ``mir`` over samples; None where it was not computed.
        result: the whole measurement, a ``mir.json`` relative to the report's folder.
    """

    checkpoint: str
    study: str
    condition: str
    mir: float
    mir_published: float | None
    low: float | None
    high: float | None
    n_samples: int
    n_vision_tokens: int
    n_text_tokens: int
    result: str


@dataclass(frozen=True)
class ChoiceResult:
    """MIR of one checkpoint on a seeded choice of the samples: what ``mir run --n-samples n --seed s`` would give."""

    checkpoint: str
    n_samples: int
    seed: int
    mir: float


@dataclass(frozen=True)
class NumberRow:
    """MIR over the choices of one number of samples, as in the paper's Table 6; ``deviation`` is None for one choice.

    Attributes:
        n_choices: different seeds.
        bias: ``mean`` less the value on all samples.
    """

    checkpoint: str
    n_samples: int
    n_choices: int
    mean: float
    low: float
    high: float
    deviation: float | None
    bias: float


@dataclass(frozen=True)
class Verdict:
    """How far one study moves MIR, held against the differences between checkpoints.

    Attributes:
        study, question: key, and what was varied.
        spread: highest less lowest MIR of the conditions, of the checkpoint where that is largest.
        difference: the smallest difference between two checkpoints; None without a second one.
        ratio: ``spread`` ÷ ``difference``.
        n_orders: conditions under which all checkpoints were measured; 0 for a single checkpoint.
        n_same_order: those of them that rank the checkpoints as the first condition does.
        outcome: "robust", "order kept", "unclear", "not robust" or "nothing to compare with".
    """

    study: str
    question: str
    spread: float
    difference: float | None
    ratio: float | None
    n_orders: int
    n_same_order: int
    outcome: str
    sentence: str


@dataclass(frozen=True)
class Robustness:
    """Everything that ``mir robustness`` found.

    Attributes:
        checkpoints: name → checkpoint folder, in the order of the command line.
        conditions: every condition of every study; one measurement may serve several studies.
        choices: of the study of the number of samples.
        verdicts: one for each study that ran.
        skipped: study → why it did not run.
        against: other results' checkpoint → MIR.
        notes: what a reader must know.
    """

    checkpoints: Mapping[str, str]
    n_samples: int
    conditions: tuple[ConditionResult, ...]
    choices: tuple[ChoiceResult, ...]
    verdicts: tuple[Verdict, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    against: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    def number_rows(self) -> list[NumberRow]:
        """The choices summed up, by checkpoint and number of samples."""
        return [
            _number_row([one for one in of_checkpoint if one.n_samples == n], of_checkpoint)
            for name in self.checkpoints
            if (of_checkpoint := [one for one in self.choices if one.checkpoint == name])
            for n in sorted({one.n_samples for one in of_checkpoint})
        ]

    def orders_by_number(self) -> dict[int, tuple[int, int]]:
        """For every number of samples: how many choices rank the checkpoints as all samples do, and of how many."""
        rows: dict[tuple[int, int], dict[str, float]] = {}
        for one in self.choices:
            rows.setdefault((one.n_samples, one.seed), {})[one.checkpoint] = one.mir
        if not rows:
            return {}
        reference = order_on_all(self.choices)
        counts: dict[int, tuple[int, int]] = {}
        for (n_samples, _), row in sorted(rows.items()):
            n_same, n = counts.get(n_samples, (0, 0))
            counts[n_samples] = (n_same + (order_of(row) == reference), n + 1)
        return counts

    def save(self, path: Path) -> Path:
        """Write the JSON document; a reader sees the old file or the whole new one."""
        write_atomically(path, self.to_json())
        return path

    def to_json(self) -> str:
        """All of it, with the summed-up rows as ``number_rows``, as a JSON document."""
        rows = [dataclasses.asdict(row) for row in self.number_rows()]
        return json.dumps({**dataclasses.asdict(self), "number_rows": rows}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Robustness:
        """Read what ``save`` wrote; fields of later versions are ignored.

        Raises:
            MirError: if the file cannot be read or is not a complete report; names it.
        """
        try:
            return read_as(cls, json_document(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MirError(
                f"{path} is not a complete robustness report ({error}). Make it again with `mir robustness`."
            ) from error


def order_of(row: Mapping[str, float]) -> tuple[str, ...]:
    """Checkpoints by rising MIR.

    >>> order_of({"a": 2.0, "b": 1.0})
    ('b', 'a')
    """
    return tuple(sorted(row, key=lambda name: row[name]))


def order_on_all(choices: Sequence[ChoiceResult]) -> tuple[str, ...]:
    """Checkpoints by rising MIR on all samples, which the largest choice is; at least one choice.

    >>> order_on_all([ChoiceResult("a", 1, 0, 1.0), ChoiceResult("a", 2, 0, 5.0), ChoiceResult("b", 2, 0, 4.0)])
    ('b', 'a')
    """
    n_samples = max(one.n_samples for one in choices)
    return order_of({one.checkpoint: one.mir for one in choices if one.n_samples == n_samples})


def _number_row(choices: Sequence[ChoiceResult], of_checkpoint: Sequence[ChoiceResult]) -> NumberRow:
    values = [one.mir for one in choices]
    everything = max(of_checkpoint, key=lambda one: one.n_samples)
    mean = statistics.fmean(values)
    return NumberRow(
        checkpoint=everything.checkpoint,
        n_samples=choices[0].n_samples,
        n_choices=len(values),
        mean=mean,
        low=min(values),
        high=max(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        bias=mean - everything.mir,
    )
