"""A measurement that takes more samples step by step, and stops when they are enough.

Every look is an ordinary measurement of the first n samples (``SampleSet.first``). The result of the largest is what
``mir.json`` holds; earlier ones stand in its ``looks``, so that two checkpoints have samples in common wherever each of
them stopped, and a later command goes on from there.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.errors import MirError
from mir_plugin.measurement.measurement import Measurement, lock
from mir_plugin.measurement.resume import finished_result
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import ModelAdapter

FIRST_LOOK = 16
LAST_STEP = 0.75  # a look with a larger share of the samples than that is not worth its statistics


def looks_up_to(n_samples: int) -> tuple[int, ...]:
    """Numbers of samples to look at: 16, twice as many each time, and all.

    >>> looks_up_to(100), looks_up_to(70), looks_up_to(12)
    ((16, 32, 64, 100), (16, 32, 70), (12,))
    """
    looks, n = [], FIRST_LOOK
    while n <= LAST_STEP * n_samples:
        looks.append(n)
        n *= 2
    return (*looks, n_samples)


class NestedSamples:
    """A sample set and the parts of it to look at, each of which contains the ones before.

    Attributes:
        all: the whole set.
        planned: numbers of samples, ascending; the last is all.
        target: standard error of MIR at which there are enough.
    """

    def __init__(self, samples: SampleSet, target: float) -> None:
        self.all = samples
        self.target = target
        self.planned = looks_up_to(len(samples))
        self._parts: dict[int, SampleSet] = {}

    def first(self, n_samples: int) -> SampleSet:
        """One of the parts; its files are read once."""
        return self._parts.setdefault(n_samples, self.all.first(n_samples))

    def next_after(self, result: MirResult | None) -> int:
        """How many samples to measure next; all, where these are measured already."""
        known = result.n_samples if result else 0
        return next((n for n in self.planned if n > known), self.planned[-1])

    def precise(self, result: MirResult) -> bool:
        """Whether the standard error of a result is at most the target."""
        return bool(result.uncertainty.get("standard_error", math.inf) <= self.target)


def features_are_kept(adapter: ModelAdapter) -> bool:
    """Whether features are kept from one look to the next, on disk, or the samples run again.

    An accelerator runs a sample of a 7B model in less time than a disk reads its 0.4 GB of features.
    """
    return adapter.device.type == "cpu"


@dataclass(frozen=True)
class GrowingMeasurement:
    """A measurement of all samples, and the smaller ones it begins with."""

    whole: Measurement
    samples: NestedSamples

    def of_first(self, n_samples: int) -> Measurement:
        """The measurement of the first n samples."""
        return dataclasses.replace(self.whole, samples=self.samples.first(n_samples))

    def known(self) -> MirResult | None:
        """What the folder holds of these looks at these very files; None if nothing. Collective.

        Raises:
            MirError: if another checkpoint's result is there and ``force`` is not set.
        """
        return self.whole.looked_up(self._known)

    def run(self) -> MirResult:
        """The result with the fewest samples that are precise enough, else that of all. Collective.

        Raises:
            MirError: as ``Measurement.run``.
        """
        known = self.known()
        if known and self._is_enough(known):
            self.whole.note_kept(known)
            return known
        with lock(self.whole.folder, self.whole.group):
            adapter = self.whole.load()
            keeps = features_are_kept(adapter) and self.whole.group.size == 1
            with KeptFeatures(len(adapter.decoder.layers)) as kept:
                growing = self
                while known is None or not self._is_enough(known):
                    known = growing.measure(self.samples.next_after(known), adapter, kept if keeps else None)
                    growing = dataclasses.replace(self, whole=dataclasses.replace(self.whole, force=False))
        return known

    def measure(self, n_samples: int, adapter: ModelAdapter, kept: KeptFeatures | None = None) -> MirResult:
        """Measure the first n samples and save what is known now; the folder has to be locked. Collective."""
        if kept:
            kept.more_follow = n_samples < self.samples.planned[-1]
        result = self.of_first(n_samples).measure(adapter, kept=kept, completed=self._with_earlier)
        return self.whole.group.broadcast(result)

    def _is_enough(self, result: MirResult) -> bool:
        return self.samples.precise(result) or result.n_samples == len(self.whole.samples)

    def _known(self) -> MirResult | None:
        path = self.whole.result_path
        try:
            result = MirResult.load(path)
        except MirError:  # none, not ours, or of another version
            return None
        n_samples = result.n_samples if result.n_samples in self.samples.planned else len(self.whole.samples)
        request = self.of_first(n_samples).fingerprint
        if finished_result(path, request, self.whole.checkpoint.name, with_uncertainty=True) is None:
            return None
        looks = tuple(
            look
            for look in result.looks
            if look.n_samples in self.samples.planned
            and look.fingerprints.get("request") == self.of_first(look.n_samples).fingerprint
        )
        return dataclasses.replace(result, looks=looks, planned=self.samples.planned)

    def _with_earlier(self, result: MirResult) -> MirResult:
        """A result with the looks that the folder holds; of two, the one with more samples has the others as looks."""
        known = None if self.whole.force else self._known()
        if known is None:
            return dataclasses.replace(result, planned=self.samples.planned)
        most, other = (result, known) if result.n_samples > known.n_samples else (known, result)
        looks = {look.n_samples: look for look in (*known.looks, other.as_look())}
        in_order = tuple(look for _, look in sorted(looks.items()))
        return dataclasses.replace(most, looks=in_order, planned=self.samples.planned)
