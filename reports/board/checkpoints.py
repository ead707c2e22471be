"""The checkpoints of a report: which keys are one, and what each is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import IN_MEMORY
from mir_plugin.measurement.checkpoint_names import step_in_name
from mir_plugin.reports.board.config import ModelEntry, ReportConfig
from mir_plugin.reports.board.links import Linked, link, matching
from mir_plugin.reports.read.identity import (
    NAME,
    PATH,
    VLMEVALKIT_MODEL,
    WEIGHTS,
    Clusters,
    plain,
    short_names,
)
from mir_plugin.reports.read.records import CheckpointRef, ParsedSources, Problem

KEY_KINDS = (PATH, NAME, VLMEVALKIT_MODEL, WEIGHTS)  # the first kind that a checkpoint has names it


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a report: identity, display name, group, training step, and what was fine-tuned from it."""

    identity: str
    name: str
    group: str = ""
    step: int | None = None
    finetuned: str = ""


@dataclass(frozen=True)
class Checkpoints:
    """All checkpoints of a report, found by any reference to them; and what did not go as the configuration says."""

    by_key: Mapping[str, Checkpoint]
    problems: tuple[Problem, ...]
    told_apart: Mapping[CheckpointRef, CheckpointRef] = field(default_factory=dict)
    linked: tuple[Linked, ...] = ()

    def mir_counts(self, reference: CheckpointRef) -> bool:
        """Whether MIR of this reference is its row's: not that of a fine-tuned model linked to another one."""
        return not any(self._key(reference) in one.finetuned for one in self.linked)

    def scores_count(self, reference: CheckpointRef) -> bool:
        """Whether scores of this reference are its row's: not those of a pre-trained model linked to another one."""
        return not any(self._key(reference) in one.pretrained for one in self.linked)

    def _key(self, reference: CheckpointRef) -> str:
        return self.told_apart.get(reference, reference).keys[0]

    def of(self, reference: CheckpointRef) -> Checkpoint:
        """The checkpoint that a record belongs to."""
        return self.by_key[self._key(reference)]


def find_checkpoints(parsed: ParsedSources, config: ReportConfig) -> Checkpoints:
    """Join the references of all records: those that share a key, and those that one ``match`` list names.

    Raises:
        MirError: if the configuration gives one name to two checkpoints.
    """
    named = [score.checkpoint for score in parsed.scores] + [m.checkpoint for m in parsed.measurements]
    told_apart, problems = _told_apart(named)
    references = {reference.keys: reference for reference in (told_apart.get(one, one) for one in named)}
    clusters: Clusters[str] = Clusters()
    for keys in references:
        clusters.join(keys)
    everything = sorted({key for keys in references for key in keys})
    entry_keys: list[tuple[ModelEntry, str]] = []
    for entry in config.models:
        found = [key for text in entry.match for key in matching(text, everything, clusters, problems)]
        clusters.join(found)
        entry_keys += [(entry, key) for key in found[:1]]
    linked, of_links = link(parsed, config, everything, clusters)
    problems += of_links
    finetuned = {key for one in linked for key in one.finetuned}

    members: dict[str, list[str]] = {}
    for key in everything:
        members.setdefault(clusters.root(key), []).append(key)
    # A row of two checkpoints is called after the pre-trained one, and has its step and its run.
    naming = {root: [key for key in keys if key not in finetuned] or keys for root, keys in members.items()}
    labels: dict[str, str] = {}
    for reference in sorted(references.values(), key=lambda reference: reference.keys[0] in finetuned):
        labels.setdefault(clusters.root(reference.keys[0]), reference.label)
    identities = _identities(naming)
    tuned = {clusters.root(r.keys[0]): r.label for r in references.values() if r.keys[0] in finetuned}
    entries = {clusters.root(key): entry for entry, key in entry_keys}
    names = _names(labels, entries)
    found_checkpoints = {
        root: Checkpoint(
            identity=identities[root],
            name=names[root],
            group=entries[root].group if root in entries else "",
            step=_step(naming[root], entries.get(root)),
            finetuned=tuned.get(root, ""),
        )
        for root, keys in members.items()
    }
    problems += _changed_weights(naming, names)
    by_key = {key: found_checkpoints[root] for root, keys in members.items() for key in keys}
    return Checkpoints(by_key, tuple(problems), told_apart, tuple(linked))


def _told_apart(named: Sequence[CheckpointRef]) -> tuple[dict[CheckpointRef, CheckpointRef], list[Problem]]:
    """References without those names that mean several folders, and what to say about them.

    A relative name means one folder in each working directory. Where results of different folders give one name to
    different weights, and nobody wrote down the folder, each is taken to lie below its own results.
    """
    folders, weights, roots = (_by_name(named, kind) for kind in (PATH, WEIGHTS, ""))
    ambiguous = {name for name, found in folders.items() if len(found) > 1}
    ambiguous |= {name for name, found in roots.items() if len(found) > 1 and len(weights.get(name, ())) > 1}
    changed: dict[CheckpointRef, CheckpointRef] = {}
    problems = []
    for reference in dict.fromkeys(named):
        names = [key for key in reference.keys if key in ambiguous]
        if reference.moved_link:
            what = f"{reference.moved_link} is a link that was changed after this was measured"
            remedy = "Shown apart: where it led is not known. Join it by `match:` in a configuration."
            problems.append(Problem("warning", "unmatched", reference.label, what, remedy))
        if not names:
            continue
        others = tuple(key for key in reference.keys if key not in ambiguous)
        if any(key.startswith(PATH) for key in others):
            changed[reference] = replace(reference, keys=others)
        elif reference.root:
            place = f"{reference.root}/{plain(names[0])}"
            changed[reference] = replace(reference, label=place, keys=(PATH + place, *others))
        else:
            known = ", ".join(sorted(map(plain, folders.get(names[0], ())))) or "folders of several projects"
            what = f"this name means several checkpoints here: {known}"
            remedy = "Its scores are shown apart. Evaluate by absolute paths, or join them by `match:`."
            problems.append(Problem("warning", "unmatched", reference.label, what, remedy))
    return changed, problems


def _by_name(named: Sequence[CheckpointRef], kind: str) -> dict[str, set[str]]:
    """Name → keys of a kind that stand beside it; without a kind the roots."""
    found: dict[str, set[str]] = {}
    for reference in named:
        beside = {key for key in reference.keys if key.startswith(kind)} if kind else {reference.root} - {""}
        for key in reference.keys:
            if key.startswith(NAME):
                found.setdefault(key, set()).update(beside)
    return found


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
        in_memory = [one for one in weights if one.startswith(IN_MEMORY)]
        if len(weights) > 1 and in_memory and len(weights) - len(in_memory) == 1:
            what = (
                "some of its MIR values are of weights in memory (a training, or a host that changed them), which are "
                "not known to be those of its files"
            )
            problems.append(Problem("note", "incomparable", names[root], what, "Measure its files: `mir run`."))
        elif len(weights) > 1:
            what = (
                f"its records name {len(weights)} different weights fingerprints ({', '.join(weights)}): it was "
                "changed between measurements, or measured by a version that identified checkpoints otherwise"
            )
            problems.append(
                Problem("warning", "incomparable", names[root], what, "Measure it again, or split the paths.")
            )
    return problems
