"""Rows for two checkpoints: MIR of the pre-trained one, scores of the one fine-tuned from it."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.read.identity import (
    NAME,
    PATH,
    VLMEVALKIT_MODEL,
    WEIGHTS,
    Clusters,
    plain,
    resolved,
)
from mir_plugin.reports.read.records import CheckpointRef, ParsedSources, Problem

N_LISTED = 4  # names in one message
Pair = tuple[str, str]  # roots of the pre-trained checkpoint and of the fine-tuned one


@dataclass(frozen=True)
class Linked:
    """The keys of the two checkpoints of one row."""

    pretrained: frozenset[str]
    finetuned: frozenset[str]


def link(
    parsed: ParsedSources, config: ReportConfig, everything: Sequence[str], clusters: Clusters[str]
) -> tuple[list[Linked], list[Problem]]:
    """Join the configured pairs, then those that the folders of fine-tuned checkpoints name.

    Raises:
        MirError: if one checkpoint is linked to two.
    """
    problems: list[Problem] = []
    pairs = _configured(config, everything, clusters, problems)
    pairs += _named_by_folders(parsed, clusters, {root for pair in pairs for root in pair}, problems)
    members: dict[str, set[str]] = defaultdict(set)
    for key in everything:
        members[clusters.root(key)].add(key)
    linked = [Linked(frozenset(members[before]), frozenset(members[after])) for before, after in pairs]
    for pair in pairs:
        clusters.join(pair)
    return linked, problems


def _configured(
    config: ReportConfig, everything: Sequence[str], clusters: Clusters[str], problems: list[Problem]
) -> list[Pair]:
    pairs: dict[Pair, str] = {}
    for one in config.links:
        before = matching(one.pretrained, everything, clusters, problems, "link")
        after = matching(one.finetuned, everything, clusters, problems, "link")
        if not (before and after):
            continue
        pair = clusters.root(before[0]), clusters.root(after[0])
        if pair[0] == pair[1]:
            what = f"{one.pretrained} and {one.finetuned} are one checkpoint already"
            problems.append(Problem("note", "linked", "configuration", what, "Leave the link out."))
        else:
            pairs[pair] = f"{one.pretrained}={one.finetuned}"
    ends: dict[str, str] = {}
    for pair, text in pairs.items():
        for root in pair:
            if root in ends:
                raise MirError(
                    f"links {ends[root]!r} and {text!r} share a checkpoint; a row has one MIR and one set of scores, "
                    "so link each checkpoint once."
                )
            ends[root] = text
    return list(pairs)


def _named_by_folders(
    parsed: ParsedSources, clusters: Clusters[str], taken: Collection[str], problems: list[Problem]
) -> list[Pair]:
    """Pairs of a checkpoint with MIR alone, and the only one with scores alone whose folder names it."""
    measured = set(_roots(clusters, (one.checkpoint for one in parsed.measurements)))
    scored = set(_roots(clusters, (one.checkpoint for one in parsed.scores)))
    with_mir = {key for one in parsed.measurements for key in one.checkpoint.keys}
    named: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    found: set[str] = set()
    for origin in parsed.origins:
        after = clusters.root(origin.checkpoint.keys[0])
        before = next((clusters.root(key) for key in origin.keys if key in with_mir), None)
        if before is None or after in found | measured or {before, after} & set(taken) or before in scored:
            continue
        found.add(after)
        named[before][after] = origin.checkpoint.label, origin.said
    pairs = []
    for before, after_it in named.items():
        labels = [label for label, _ in after_it.values()]
        where = plain(before)
        if len(after_it) == 1:
            ((after, (label, said)),) = after_it.items()
            pairs.append((before, after))
            what = f"MIR of {where} beside the scores of {label}, which was trained from it ({said})"
            problems.append(Problem("note", "linked", label, what))
        else:
            listed = ", ".join(labels[:N_LISTED]) + (", …" if len(labels) > N_LISTED else "")
            what = f"{len(labels)} checkpoints with scores were trained from it: {listed}; linked to none of them"
            problems.append(Problem("warning", "unmatched", where, what, "Choose one: --link PRETRAIN=SFT."))
    return pairs


def _roots(clusters: Clusters[str], references: Iterable[CheckpointRef]) -> Iterator[str]:
    return (clusters.root(reference.keys[0]) for reference in references)


def matching(
    text: str, everything: Sequence[str], clusters: Clusters[str], problems: list[Problem], what_for: str = "match"
) -> list[str]:
    """Keys that a text of the configuration means: exactly, as a path, or as the last part of one checkpoint's path."""
    exact = {text, NAME + posixpath.normpath(text), VLMEVALKIT_MODEL + text, WEIGHTS + text}
    exact.add(f"{PATH}{resolved(text)}")
    found = [key for key in everything if key in exact]
    if found:
        return found
    tails = [key for key in everything if not key.startswith(WEIGHTS) and PurePosixPath(plain(key)).name == text]
    if len({clusters.root(key) for key in tails}) == 1:
        return tails
    if tails:
        what = f"{what_for} {text!r} fits several checkpoints: {', '.join(map(plain, tails))}"
        problems.append(Problem("warning", "unmatched", "configuration", what, "Give the whole path or name."))
    else:
        what = f"{what_for} {text!r} fits no checkpoint of the sources"
        problems.append(Problem("warning", "unmatched", "configuration", what, "Compare with the Runs sheet."))
    return []
