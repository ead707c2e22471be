"""Which conditions a robustness study measures: the paper's invariance studies, as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mir_plugin.errors import MirError
from mir_plugin.robustness.contents import (
    Images,
    Pairs,
    Texts,
    belonging,
    moved,
    paired,
)
from mir_plugin.robustness.results import (
    CONTENT,
    EXPOSURE,
    NUMBER,
    RELEVANCE,
    STUDIES,
    TEMPLATE,
)
from mir_plugin.samples.sample_set import SampleSet, seeded_choice

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Condition:
    """Samples, and whether the conversation template surrounds them: what is measured once.

    Attributes:
        name: unique among the conditions of one command.
        chosen_too: whether the choices of the number study are taken from this condition.
    """

    name: str
    samples: SampleSet
    template: bool = True
    chosen_too: bool = False

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Choice:
    """A seeded choice of a condition's samples, by their indices."""

    seed: int
    indices: tuple[int, ...]

    @property
    def n_samples(self) -> int:
        """How many were chosen."""
        return len(self.indices)


@dataclass(frozen=True)
class Plan:
    """The studies to run: each a list of conditions, the first of which is the one to compare with.

    Attributes:
        studies: study → its conditions; one condition may belong to several.
        choices: out of the samples of the condition that is ``chosen_too``.
        skipped: study → why it is left out.
    """

    studies: dict[str, tuple[Condition, ...]]
    choices: tuple[Choice, ...]
    skipped: dict[str, str]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Every condition once."""
        by_name = {one.name: one for conditions in self.studies.values() for one in conditions}
        return tuple(by_name.values())


@dataclass(frozen=True)
class Kinds:
    """What the studies draw their samples from; None where nothing is known of the kind."""

    images: tuple[Images, ...]
    texts: tuple[Texts, ...]
    pairs: Pairs | None
    seen: Pairs | None
    unseen: Pairs | None

    @property
    def fewest(self) -> int:
        """How many samples every kind can give."""
        return min(len(kind) for kind in (*self.images, *self.texts, self.pairs, self.seen, self.unseen) if kind)


def plan(
    kinds: Kinds, wanted: Sequence[str], n: int, seed: int = 0, *, sizes: Sequence[int] = SIZES, repeats: int = 10
) -> Plan:
    """The conditions of the wanted studies, every one of n samples.

    Args:
        wanted: keys of ``STUDIES``.
        sizes: numbers of samples to choose out of the n; those that are not below n are left out.
        repeats: choices of each size, with the seeds 0, 1 and so on.
    Raises:
        MirError: for an unknown study, fewer than n samples of a kind, or if no study is left.
    """
    for study in wanted:
        if study not in STUDIES:
            raise MirError(f"unknown study {study!r}; expected {', '.join(STUDIES)}.")
    of_number = choices(n, sizes, repeats)
    missing = _missing(kinds)
    if not of_number:
        missing[NUMBER] = f"no number of samples below {n} to choose: name smaller ones with --sizes."
    chosen = [study for study in STUDIES if study in wanted and study not in missing]
    if not chosen:
        raise MirError("no study can run: " + " ".join(missing[study] for study in wanted))
    first = _content(kinds.images[0], kinds.texts[0], n, seed, chosen_too=NUMBER in chosen)
    return Plan(
        {study: _conditions(study, kinds, first, n, seed) for study in chosen},
        of_number if NUMBER in chosen else (),
        {study: why for study, why in missing.items() if study in wanted},
    )


def choices(n: int, sizes: Sequence[int], repeats: int) -> tuple[Choice, ...]:
    """The seeded choices of every size below n; of n itself there is but one, which is the condition's own result.

    >>> [(one.n_samples, one.seed) for one in choices(5, sizes=[1, 2, 10], repeats=2)]
    [(1, 0), (1, 1), (2, 0), (2, 1)]
    """
    return tuple(
        Choice(seed, seeded_choice(n, size, seed))
        for size in sorted({size for size in sizes if size < n})
        for seed in range(repeats)
    )


def _missing(kinds: Kinds) -> dict[str, str]:
    """Studies that lack their data, and what would give it."""
    missing = {}
    if len(kinds.images) * len(kinds.texts) < 2:
        missing[CONTENT] = "there is one kind of images and one of texts: name more with --images and --texts."
    if kinds.pairs is None:
        missing[RELEVANCE] = "no images with texts that belong to them: name some with --pairs IMAGES TEXTS."
    if kinds.seen is None or kinds.unseen is None:
        missing[EXPOSURE] = "its training data is unknown: name it with --seen IMAGES TEXTS --unseen IMAGES TEXTS."
    return missing


def _conditions(study: str, kinds: Kinds, first: Condition, n: int, seed: int) -> tuple[Condition, ...]:
    if study == CONTENT:
        grid = [_content(images, texts, n, seed) for images in kinds.images for texts in kinds.texts]
        return (first, *grid[1:])
    if study == TEMPLATE:
        return first, Condition(f"{first.name}, no template", first.samples, template=False)
    if study == RELEVANCE and kinds.pairs is not None:
        return (
            Condition(f"{kinds.pairs.name}, own text", belonging(kinds.pairs, n)),
            Condition(f"{kinds.pairs.name}, text of another", moved(kinds.pairs, n)),
        )
    if study == EXPOSURE and kinds.seen is not None and kinds.unseen is not None:
        return (
            Condition(f"{kinds.seen.name}, seen", belonging(kinds.seen, n)),
            Condition(f"{kinds.unseen.name}, not seen", belonging(kinds.unseen, n)),
        )
    return (first,)


def _content(images: Images, texts: Texts, n: int, seed: int, *, chosen_too: bool = False) -> Condition:
    return Condition(f"{images.name} + {texts.name}", paired(images, texts, n, seed), chosen_too=chosen_too)
