"""What a sweep does with each of its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.errors import MirError
from mir_plugin.indicators.file import INDICATORS_NAME, answered, indicators_document, save_indicators
from mir_plugin.indicators.in_context import about_questions, chosen_questions
from mir_plugin.indicators.indicators import checkpoint_indicators
from mir_plugin.measurement.growing import GrowingMeasurement, NestedSamples, features_are_kept
from mir_plugin.measurement.measurement import Measurement, lock
from mir_plugin.measurement.out_of_memory import out_of_memory_explained
from mir_plugin.measurement.resume import loading_fingerprint
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.further import further_looks
from mir_plugin.selection.sweep import Measured, SweepEntry
from mir_plugin.types import ModelAdapter


class SweepMeasuring:
    """Measures one checkpoint after another, keeping loaded what the next one may share.

    Attributes:
        load, samples, force: as given.
        shared: what the last checkpoint left loaded.
        nested: the parts of the samples to begin with.
        kept_features: of checkpoints that may need more samples; with none where ``keeps_features`` is false.
    """

    def __init__(
        self,
        load: LoadOptions,
        samples: SampleSet,
        protocol: MirConfig,
        *,
        batch_size: int | None = None,
        force: bool = False,
        group: Group = ALONE,
        n_questions: int | None = None,
        nested: NestedSamples | None = None,
    ) -> None:
        """Prepare to measure.

        Args:
            n_questions: of the in-context accuracy; None measures no indicators at all.
            nested: the parts of the samples to begin with; None always measures all.
        Raises:
            MirError: for indicators with streamed weights, several processes or parts of the samples.
        """
        self._with_indicators = n_questions is not None
        if self._with_indicators and nested:
            raise MirError("--indicators take all samples; leave out --precision or --indicators.")
        if self._with_indicators and load.device_memory is not None:
            raise MirError("--indicators need all weights in memory; leave out --device-memory or --indicators.")
        if self._with_indicators and group.size > 1:
            raise MirError(
                f"--indicators run in one process, but there are {group.size}. Sweep with all processes first, then "
                "once more with --indicators in one: results that exist are kept."
            )
        self.load, self.samples, self._protocol = load, samples, protocol
        self._batch_size, self.force, self._group = batch_size, force, group
        self._questions = chosen_questions(None, n_questions or 0)
        self._about = about_questions(self._questions)
        self.shared = SharedParts()
        self.nested = nested
        self.kept_features: dict[Path, KeptFeatures] = {}
        self.keeps_features = group.size == 1
        self._begun: set[Path] = set()

    @property
    def loading(self) -> str:
        """Fingerprint of how checkpoints are loaded."""
        return loading_fingerprint(self.load)

    def on_device(self, kind: str) -> SweepMeasuring:
        """The same for a device of this kind, unless one was asked for; no index, as others say which one it is."""
        own = kind if self.load.device == "auto" else self.load.device.partition(":")[0]
        other = copy.copy(self)
        other.load = dataclasses.replace(self.load, device=own)
        return other

    def for_workers(self) -> SweepMeasuring:
        """The same for other processes, on other machines perhaps: with the samples' images in memory."""
        other = copy.copy(self)
        other.samples, other.shared, other.force = self.samples.in_memory(), SharedParts(), False
        other.nested = NestedSamples(other.samples, self.nested.target) if self.nested else None
        other.kept_features, other.keeps_features = {}, False  # which worker gets a checkpoint next is not known
        return other

    def kept(self, checkpoint: Path, result_path: Path, n_samples: int | None = None) -> Measured | None:
        """The result that is there already, if nothing is missing of it."""
        if self.nested:
            known = self._growing(checkpoint, result_path, self.nested).known()
            return Measured(known, kept=True) if known and self._reaches(known, n_samples) else None
        existing, lacks_indicators = self._existing(self.measurement(checkpoint, result_path))
        return Measured(existing, kept=True) if existing and not lacks_indicators else None

    def measurement(self, checkpoint: Path, result_path: Path) -> Measurement:
        """Of a checkpoint, with its result at this path."""
        return Measurement(
            Checkpoint(checkpoint, self.load),
            self.samples,
            self._protocol,
            result_path.parent,
            self._batch_size,
            force=self.force,
            group=self._group,
        )

    def _existing(self, measurement: Measurement) -> tuple[MirResult | None, bool]:
        """The result of an earlier run, and whether indicators are missing beside it."""
        existing = measurement.earlier()
        recorded = indicators_document(measurement.folder, existing) if existing else {}
        return existing, self._with_indicators and not answered(recorded, self._about)

    def __call__(self, checkpoint: Path, result_path: Path, n_samples: int | None = None) -> Measured:
        """Measure what is missing of a checkpoint: its MIR, its indicators, or nothing.

        Args:
            n_samples: of the nested samples; None is the fewest.
        """
        if self.nested:
            return self._grown(checkpoint, result_path, self.nested, n_samples)
        measurement = self.measurement(checkpoint, result_path)
        existing, lacks_indicators = self._existing(measurement)
        if existing and not lacks_indicators:
            return Measured(existing, kept=True)
        with lock(measurement.folder, measurement.group), out_of_memory_explained():
            adapter = measurement.load(self.shared)
            result = existing or measurement.measure(adapter)
            if lacks_indicators:
                folder, path = measurement.checkpoint.folder.path, result_path.with_name(INDICATORS_NAME)
                indicators = checkpoint_indicators(
                    adapter, folder, self.samples, self._questions, batch_size=self._batch_size
                )
                save_indicators(path, indicators, adapter, checkpoint, self.samples, self._about)
        return Measured(result, kept=existing is not None)

    def _growing(self, checkpoint: Path, result_path: Path, nested: NestedSamples) -> GrowingMeasurement:
        whole = self.measurement(checkpoint, result_path)
        if checkpoint in self._begun:  # --force does not mean what this sweep has measured
            whole = dataclasses.replace(whole, force=False)
        return GrowingMeasurement(whole, nested)

    def _grown(self, checkpoint: Path, result_path: Path, nested: NestedSamples, n_samples: int | None) -> Measured:
        if kept := self.kept(checkpoint, result_path, n_samples):
            return kept
        growing = self._growing(checkpoint, result_path, nested)
        with lock(growing.whole.folder, self._group), out_of_memory_explained():
            adapter = growing.whole.load(self.shared)
            features = self._features_of(checkpoint, adapter)
            result = growing.measure(n_samples or nested.planned[0], adapter, features)
        self._begun.add(checkpoint)
        return Measured(result, kept=False)

    def _reaches(self, known: MirResult, n_samples: int | None) -> bool:
        assert self.nested
        return (n_samples or self.nested.planned[0]) in known.numbers_of_samples

    def _features_of(self, checkpoint: Path, adapter: ModelAdapter) -> KeptFeatures | None:
        """Where the features of a checkpoint are kept for a further look; None where they are not."""
        if not (self.keeps_features and features_are_kept(adapter)):
            return None
        return self.kept_features.setdefault(checkpoint, KeptFeatures(len(adapter.decoder.layers)))

    def further(self, tolerance: float) -> Callable[[Sequence[SweepEntry]], Mapping[str, int]]:
        """What ``Sweep`` asks when nothing waits: which checkpoints need more samples. Frees what others had kept."""

        def looks(entries: Sequence[SweepEntry]) -> Mapping[str, int]:
            assert self.nested
            wanted = further_looks(entries, self.nested, tolerance)
            self.forget(but=[one.checkpoint for one in entries if one.name in wanted])
            return wanted

        return looks

    def forget(self, but: Collection[Path] = ()) -> None:
        """Give the disk space of kept features back, but for these checkpoints."""
        for checkpoint in self.kept_features.keys() - set(but):
            self.kept_features.pop(checkpoint).close()
