"""Configuration of a report, read from a small YAML file: names, groups, benchmarks, weights."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import without_apostrophe
from mir_plugin.files.strict_json import is_number
from mir_plugin.reports.board.config_keys import (
    BenchmarkKeys,
    ConfigKeys,
    HostKeys,
    Link,
    ModelKeys,
    Unit,
    keys_of,
)
from mir_plugin.reports.read.benchmarks import (
    AVERAGE_SETS,
    DEFAULT_AVERAGE,
    FRACTION,
    LMMS_EVAL,
    OWN_AVERAGE,
    PERCENT,
    VLMEVALKIT,
    AverageSet,
    Benchmark,
    Headline,
)
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.spreadsheet import SUFFIXES, read_grid

SHOWN_NAMES = 12  # in a message
SCALES = {"fraction": FRACTION, "percent": PERCENT, "points": 1.0}


class _OneValuePerKey(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Refuses duplicate keys, of which PyYAML's safe loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; an error if it has a key twice."""
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for key in written if written.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice!r}", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


@dataclass(frozen=True)
class ModelEntry:
    """Joins everything known under any of ``match`` into one checkpoint, and says how to show it."""

    match: tuple[str, ...]
    name: str = ""
    group: str = ""
    step: int | None = None


@dataclass(frozen=True)
class ReportConfig:
    """Configuration of a report; the defaults show everything that was read.

    Attributes:
        models: joins, display names, groups and training steps.
        links: pre-trained checkpoints, and what was fine-tuned from them.
        benchmarks: all that are known, the user's own included.
        shown: keys of the benchmarks to show, in order; empty for all that have scores.
        average: the benchmarks that the average is over, all with the same weight. It depends on nothing else: a
            checkpoint that lacks one of them has no average, whatever the others have.
        weights: benchmark key → weight in the average, in place of ``average``.
        formats: which files are written; see ``build.FORMATS``. Empty: all.
        notes: sentences to show with the report's own warnings.
    """

    title: str = "MIR and benchmark scores"
    models: tuple[ModelEntry, ...] = ()
    links: tuple[Link, ...] = ()
    benchmarks: tuple[Benchmark, ...] = BENCHMARKS
    shown: tuple[str, ...] = ()
    average: AverageSet = AVERAGE_SETS[DEFAULT_AVERAGE]
    weights: Mapping[str, float] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def average_weights(self) -> Mapping[str, float]:
        """Benchmark key → weight in the average."""
        return self.weights or dict.fromkeys(self.average.keys, 1.0)

    def averaging(self, text: str) -> ReportConfig:
        """The same with another average: the name of a set, or comma-separated keys of benchmarks.

        Raises:
            MirError: for a name that is neither.
        """
        keys = [key.strip() for key in text.split(",")]
        chosen = keys[0] if len(keys) == 1 and keys[0] in AVERAGE_SETS else keys
        known = [*AVERAGE_SETS] * (len(keys) == 1) + [benchmark.key for benchmark in self.benchmarks]
        return replace(self, average=_average(_Reader("--average"), chosen, known), weights={})

    def linking(self, links: Sequence[str]) -> ReportConfig:
        """The same with more links between pre-trained checkpoints and what was fine-tuned from them.

        Args:
            links: ``PRETRAIN=SFT``, or paths of CSV files with these two columns and a line of headings.
        Raises:
            MirError: for a text that is neither, or a table that has no two columns.
        """
        return replace(self, links=(*self.links, *(Link(*pair) for link in links for pair in _linked(link))))

    @classmethod
    def load(cls, path: Path) -> ReportConfig:
        """Read a YAML file. Raises MirError naming the file and the key that is wrong."""
        try:
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=_OneValuePerKey) or {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # an invalid date is a ValueError
            raise MirError(f"cannot read the report configuration {path}: {error}") from error
        return cls.from_mapping(data, source=str(path))

    @classmethod
    def from_mapping(cls, data: Any, source: str = "configuration") -> ReportConfig:
        """The same from plain values. Raises MirError for unknown keys, unknown benchmarks and wrong types."""
        reader = _Reader(source)
        data = reader.mapping(data, "", keys_of(ConfigKeys))
        own = tuple(_benchmark(reader, item, i) for i, item in enumerate(reader.sequence(data, "define")))
        own_keys = {benchmark.key for benchmark in own}
        known = (*(b for b in BENCHMARKS if b.key not in own_keys), *own)
        keys = [benchmark.key for benchmark in known]
        twice = next((benchmark.key for benchmark in own if keys.count(benchmark.key) > 1), None)
        if twice is not None:
            raise MirError(f"{source}: define has {twice!r} twice; define each benchmark once.")
        shown = tuple(
            dict.fromkeys(reader.one_of(one, "benchmarks", keys) for one in reader.sequence(data, "benchmarks"))
        )
        weights = reader.mapping(data.get("weights") or {}, "weights", keys)
        if weights and data.get("average"):
            raise MirError(f"{source}: average and weights cannot be combined; give one of them.")
        return cls(
            title=str(data.get("title") or cls.title),
            models=tuple(_model(reader, item, i) for i, item in enumerate(reader.sequence(data, "models"))),
            links=tuple(_link(reader, item, i) for i, item in enumerate(reader.sequence(data, "links"))),
            benchmarks=known,
            shown=shown,
            average=_average(reader, data.get("average") or DEFAULT_AVERAGE, keys),
            weights={key: reader.weight(value, f"weights.{key}") for key, value in weights.items()},
            formats=tuple(str(item) for item in reader.sequence(data, "formats")),
            notes=tuple(str(item) for item in reader.sequence(data, "notes")),
        )


def _link(reader: _Reader, item: Any, index: int) -> Link:
    entry = reader.mapping(item, f"links[{index}]", keys_of(Link))
    for key in keys_of(Link):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise reader.error(f"links[{index}].{key}", entry.get(key), "a checkpoint's path or name")
    return Link(entry["pretrained"], entry["finetuned"])


def _linked(link: str) -> list[tuple[str, str]]:
    """Pairs of a pre-trained checkpoint and the one fine-tuned from it."""
    path = Path(link)
    if path.suffix.lower() in SUFFIXES:
        try:
            _, *rows = read_grid(path) or [[]]
        except (OSError, ValueError) as error:
            raise MirError(f"cannot read the links in {path}: {error}") from error
        wrong = next((number for number, row in enumerate(rows, start=2) if len(row) != 2 or not all(row)), None)
        if wrong is not None or not rows:
            where = f"{path} row {wrong}" if wrong else str(path)
            raise MirError(f"{where}: expected two columns, pre-trained and fine-tuned checkpoint, under headings.")
        return [(without_apostrophe(str(one)), without_apostrophe(str(other))) for one, other in rows]
    before, sign, after = link.partition("=")
    if not (sign and before.strip() and after.strip()):
        raise MirError(f"--link {link!r}: expected PRETRAIN=SFT, or a CSV file with these two columns.")
    return [(before.strip(), after.strip())]


def _average(reader: _Reader, value: Any, keys: Sequence[str]) -> AverageSet:
    """A named set, or the user's list of keys."""
    if isinstance(value, list):
        own = tuple(dict.fromkeys(reader.one_of(key, "average", keys) for key in value))
        return AverageSet(OWN_AVERAGE, f"{len(own)} chosen benchmark{'s' * (len(own) != 1)}", own)
    return AVERAGE_SETS[reader.one_of(value, "average", tuple(AVERAGE_SETS))]


def _model(reader: _Reader, item: Any, index: int) -> ModelEntry:
    where = f"models[{index}]"
    entry = reader.mapping(item, where, keys_of(ModelKeys))
    match = entry.get("match")
    match = [match] if isinstance(match, str) else match
    if not isinstance(match, list) or not match:
        raise reader.error(f"{where}.match", match, "a checkpoint's path or name, or a list of them")
    step = entry.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise reader.error(f"{where}.step", step, "an integer")
    return ModelEntry(tuple(map(str, match)), str(entry.get("name") or ""), str(entry.get("group") or ""), step)


def _benchmark(reader: _Reader, item: Any, index: int) -> Benchmark:
    where = f"define[{index}]"
    entry = reader.mapping(item, where, keys_of(BenchmarkKeys))
    key = entry.get("key")
    if not isinstance(key, str) or not key:
        raise reader.error(f"{where}.key", key, "a short name")
    unit = reader.one_of(entry.get("unit", "percent"), f"{where}.unit", get_args(Unit))
    headlines = []
    for name, host in (("lmms_eval", LMMS_EVAL), ("vlmevalkit", VLMEVALKIT)):
        if name in entry:
            line = reader.mapping(entry[name], f"{where}.{name}", keys_of(HostKeys))
            if not line.get("task") or not line.get("metric"):
                raise reader.error(f"{where}.{name}", line, "task and metric")
            scale = reader.one_of(line.get("scale", unit), f"{where}.{name}.scale", tuple(SCALES))
            headlines.append(Headline(host, (str(line["task"]),), str(line["metric"]), SCALES[scale]))
    return Benchmark(
        key=key,
        name=str(entry.get("name") or key),
        headlines=tuple(headlines),
        columns=tuple(map(str, reader.sequence(entry, "columns"))),
        unit="points" if unit == "points" else "percent",
        to_percent=reader.weight(entry.get("to_percent", 1.0), f"{where}.to_percent"),
        higher_is_better=reader.boolean(entry.get("higher_is_better", True), f"{where}.higher_is_better"),
        averaged=reader.boolean(entry.get("averaged", unit == "percent"), f"{where}.averaged"),
    )


@dataclass(frozen=True)
class _Reader:
    """Checks plain values; every message names the file, the key and the expected value."""

    source: str

    def error(self, key: str, value: Any, expected: str) -> MirError:
        shown = reprlib.repr(value)  # short: a few lines of YAML can stand for gigabytes
        return MirError(f"{self.source}: {key or 'the file'} is {shown}; expected {expected}.")

    def mapping(self, value: Any, key: str, allowed: Iterable[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(key, value, "a mapping of keys to values")
        for name in value:
            self.one_of(name, f"{key} key".strip(), tuple(allowed))
        return value

    def sequence(self, data: Mapping[str, Any], key: str) -> list[Any]:
        value = data.get(key) or []
        if not isinstance(value, list):
            raise self.error(key, value, "a list")
        return value

    def one_of(self, value: Any, key: str, allowed: Iterable[str]) -> str:
        names = list(allowed)
        if value not in names:
            near = difflib.get_close_matches(reprlib.repr(value).strip("'"), names, 1)
            shown = ", ".join(names[:SHOWN_NAMES])
            if len(names) > SHOWN_NAMES:
                shown += f", … ({len(names)} in all, listed on the page Report configuration)"
            raise self.error(key, value, f"one of {shown}" + (f" (did you mean {near[0]}?)" if near else ""))
        return str(value)

    def weight(self, value: Any, key: str) -> float:
        if not is_number(value) or value < 0:
            raise self.error(key, value, "a non-negative number")
        return float(value)

    def boolean(self, value: Any, key: str) -> bool:
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value
