"""The checkpoints of a report: which keys are one, and what each is called."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mir_plugin.errors import MirError
from mir_plugin.measurement.checkpoint_names import step_in_name
from mir_plugin.reports.board.config import ModelEntry, ReportConfig
from mir_plugin.reports.read.identity import (
    NAME,
    PATH,
    VLMEVALKIT_MODEL,
    WEIGHTS,
    Clusters,
    plain,
    resolved,
    short_names,
)
from mir_plugin.reports.read.records import CheckpointRef, ParsedSources, Problem

KEY_KINDS = (PATH, NAME, VLMEVALKIT_MODEL, WEIGHTS)  # the first kind that a checkpoint has names it


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a report: identity, display name, group, training step."""

    identity: str
    name: str
    group: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Checkpoints:
    """All checkpoints of a report, found by any reference to them; and what did not go as the configuration says."""

    by_key: Mapping[str, Checkpoint]
    problems: tuple[Problem, ...]

    def of(self, reference: CheckpointRef) -> Checkpoint:
        """The checkpoint that a record belongs to."""
        return self.by_key[reference.keys[0]]


def find_checkpoints(parsed: ParsedSources, config: ReportConfig) -> Checkpoints:
    """Join the references of all records: those that share a key, and those that one ``match`` list names.

    Raises:
        MirError: if the configuration gives one name to two checkpoints.
    """
    named = [score.checkpoint for score in parsed.scores] + [m.checkpoint for m in parsed.measurements]
    references = {reference.keys: reference for reference in named}
    clusters: Clusters[str] = Clusters()
    for keys in references:
        clusters.join(keys)
    everything = sorted({key for keys in references for key in keys})
    problems: list[Problem] = []
    entry_keys: list[tuple[ModelEntry, str]] = []
    for entry in config.models:
        found = [key for text in entry.match for key in _matching(text, everything, clusters, problems)]
        clusters.join(found)
        entry_keys += [(entry, key) for key in found[:1]]

    members: dict[str, list[str]] = {}
    for key in everything:
        members.setdefault(clusters.root(key), []).append(key)
    labels: dict[str, str] = {}
    for reference in references.values():
        labels.setdefault(clusters.root(reference.keys[0]), reference.label)
    identities = _identities(members)
    entries = {clusters.root(key): entry for entry, key in entry_keys}
    names = _names(labels, entries)
    found_checkpoints = {
        root: Checkpoint(
            identity=identities[root],
            name=names[root],
            group=entries[root].group if root in entries else "",
            step=_step(keys, entries.get(root)),
        )
        for root, keys in members.items()
    }
    problems += _changed_weights(members, names)
    by_key = {key: found_checkpoints[root] for root, keys in members.items() for key in keys}
    return Checkpoints(by_key, tuple(problems))


def _identities(members: Mapping[str, list[str]]) -> dict[str, str]:
    """What names each checkpoint, without its kind unless two differ in nothing else.

    >>> _identities({"1": ["name:a", "path:/m/a"], "2": ["name:llava"], "3": ["vlmevalkit:llava"]})
    {'1': '/m/a', '2': 'llava', '3': 'vlmevalkit:llava'}
    """
    keys = {root: min(keys, key=_identity_order) for root, keys in members.items()}
    counts = Counter(map(plain, keys.values()))
    return {
        root: key if counts[plain(key)] > 1 and key.startswith(VLMEVALKIT_MODEL) else plain(key)
        for root, key in keys.items()
    }


def _identity_order(key: str) -> tuple[int, bool, str]:
    """By kind; a place among the steps of a run comes before a name that says nothing about training."""
    kind = next(i for i, kind in enumerate(KEY_KINDS) if key.startswith(kind))
    return kind, step_in_name(PurePosixPath(plain(key)).name) is None, key


def _matching(text: str, everything: list[str], clusters: Clusters[str], problems: list[Problem]) -> list[str]:
    """Keys that a ``match`` text means: exactly, as a path, or as the last part of the path of one checkpoint."""
    exact = {text, NAME + posixpath.normpath(text), VLMEVALKIT_MODEL + text, WEIGHTS + text}
    exact.add(f"{PATH}{resolved(text)}")
    found = [key for key in everything if key in exact]
    if found:
        return found
    tails = [key for key in everything if not key.startswith(WEIGHTS) and PurePosixPath(plain(key)).name == text]
    if len({clusters.root(key) for key in tails}) == 1:
        return tails
    if tails:
        what = f"match {text!r} fits several checkpoints: {', '.join(map(plain, tails))}"
        problems.append(Problem("warning", "unmatched", "configuration", what, "Give the whole path or name."))
    else:
        what = f"match {text!r} fits no checkpoint of the sources"
        problems.append(Problem("warning", "unmatched", "configuration", what, "Compare with the Runs sheet."))
    return []


def _names(labels: Mapping[str, str], entries: Mapping[str, ModelEntry]) -> dict[str, str]:
    given = {root: entry.name for root, entry in entries.items() if entry.name}
    twice = [name for name, count in Counter(given.values()).items() if count > 1]
    if twice:
        raise MirError(
            f"the report's configuration calls different checkpoints {twice[0]!r}; give each a name of its own, "
            "or put them under one `match:` list if they are one checkpoint."
        )
    # Two kinds of keys can carry one text, for example a name in a table and a VLMEvalKit model name.
    counts = Counter(labels.values())
    distinct = {
        root: label
        if counts[label] == 1 or root == NAME + label
        else f"{label} ({'vlmevalkit' if root == VLMEVALKIT_MODEL + label else root})"
        for root, label in labels.items()
        if root not in given
    }
    short = short_names(distinct.values())
    names = given | {root: short[label] for root, label in distinct.items()}
    taken = set(given.values())
    return {
        root: name if root in given or name not in taken else f"{name} ({labels[root]})" for root, name in names.items()
    }


def _step(keys: Sequence[str], entry: ModelEntry | None) -> int | None:
    """The configured step, else that of the first of a checkpoint's names that says one."""
    if entry and entry.step is not None:
        return entry.step
    named = sorted((key for key in keys if not key.startswith(WEIGHTS)), key=_identity_order)
    return next((step for key in named if (step := step_in_name(PurePosixPath(plain(key)).name)) is not None), None)


def _changed_weights(members: Mapping[str, list[str]], names: Mapping[str, str]) -> list[Problem]:
    problems = []
    for root, keys in members.items():
        weights = [plain(key) for key in keys if key.startswith(WEIGHTS)]
        if len(weights) > 1:
            what = (
                f"its records name {len(weights)} different weights fingerprints ({', '.join(weights)}): "
                "it was changed between measurements, or loaded in different ways"
            )
            problems.append(
                Problem("warning", "incomparable", names[root], what, "Measure it again, or split the paths.")
            )
    return problems
