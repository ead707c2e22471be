"""One measurement with its files: a finished one is kept, a killed one continues, one run writes a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mir_plugin.engine.features import layer_features
from mir_plugin.engine.kept import KeptFeatures
from mir_plugin.files.atomic import only_writer
from mir_plugin.files.outside_text import on_a_line
from mir_plugin.measurement.measure import CheckpointChangedError, measure
from mir_plugin.measurement.resume import (
    Journal,
    finished_result,
    loading_fingerprint,
    request_fingerprint,
)
from mir_plugin.model_adapters import Checkpoint
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import PARTIAL_NAME, RESULT_NAME, MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import ModelAdapter, TokenFeatures


@dataclass(frozen=True)
class Measurement:
    """A checkpoint, the samples and the protocol it is measured with, and the folder of its ``mir.json``.

    Attributes:
        folder: written to by one run at a time.
        batch_size: samples per forward pass; None takes ``engine.default_batch_size``.
        with_uncertainty: also take standard errors.
        force: measure from the first layer, whatever the folder holds.
        group: the processes that measure together; process 0 reads and writes the files.
        further: what else changes the result, name → value; counts in the fingerprint.
    """

    checkpoint: Checkpoint
    samples: SampleSet
    protocol: MirConfig
    folder: Path
    batch_size: int | None = None
    with_uncertainty: bool = True
    force: bool = False
    group: Group = ALONE
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def result_path(self) -> Path:
        """Of the result."""
        return self.folder / RESULT_NAME

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that is asked for. Of the device only the type counts, not which one of several it is."""
        loading = loading_fingerprint(self.checkpoint.options, self.further)
        return request_fingerprint(self.checkpoint.folder.path, loading, self.protocol, self.samples.fingerprint)

    def run(self) -> MirResult:
        """The result in the folder if it answers this very request; else load, measure and save. Collective.

        Raises:
            MirError: if the checkpoint cannot be loaded or measured, or the folder holds another one's result.
        """
        if existing := self.earlier():
            self.note_kept(existing)
            return existing
        with lock(self.folder, self.group):
            result = self.measure(self.load())
        if n_resumed := result.engine["resumed_layers"]:
            self.note(f"resumed: {n_resumed} layers were finished by an earlier run.")
        return result

    def earlier(self) -> MirResult | None:
        """The result in the folder if it answers this very request; None if it has to be measured. Collective.

        Raises:
            MirError: if another checkpoint's result is there and ``force`` is not set.
        """
        return self.looked_up(
            lambda: finished_result(
                self.result_path, self.fingerprint, self.checkpoint.name, with_uncertainty=self.with_uncertainty
            )
        )

    def looked_up(self, find: Callable[[], MirResult | None]) -> MirResult | None:
        """What process 0 finds in the folder, in every process; nothing with ``force``. Collective."""
        existing = None
        with self.group.agreed("looking for an earlier result"):
            if self.group.rank == 0 and not self.force:
                existing = find()
                if existing is None and self.result_path.is_file():
                    self.note(f"{self.result_path} was measured with other options, samples or files: replacing it.")
        return self.group.broadcast(existing)

    def load(self, shared: SharedParts | None = None) -> ModelAdapter:
        """Load the checkpoint; ``shared`` as for ``Checkpoint.load``. Collective."""
        with self.group.agreed(f"loading {self.checkpoint.name}"):
            return self.checkpoint.load(shared)

    def measure(
        self,
        adapter: ModelAdapter,
        on_layer: Callable[[TokenFeatures], None] | None = None,
        *,
        kept: KeptFeatures | None = None,
        completed: Callable[[MirResult], MirResult] = lambda result: result,
    ) -> MirResult:
        """Measure and save, from the layer on where a killed run of this request ended; the folder has to be locked.

        Args:
            on_layer: called with every layer's features.
            kept: as for ``measurement.measure``.
            completed: adds to the result before it is saved, in process 0.
        Raises:
            MirError: if the checkpoint cannot be measured, or its files change meanwhile.
        """
        journal = Journal(self.folder / PARTIAL_NAME)
        if self.force and self.group.rank == 0:
            journal.remove()
        try:
            result = measure(
                adapter,
                self.samples,
                self.protocol,
                checkpoint=str(self.checkpoint.name),
                batch_size=self.batch_size,
                with_uncertainty=self.with_uncertainty,
                group=self.group,
                journal=journal,
                request=self.fingerprint if self.group.rank == 0 else None,
                watch=on_layer,
                kept=kept,
            )
        except CheckpointChangedError:
            journal.remove()
            raise
        with self.group.agreed("saving the result"):
            if self.group.rank == 0:
                loading = loading_fingerprint(self.checkpoint.options)
                result = dataclasses.replace(result, fingerprints={**result.fingerprints, "loading": loading})
                result = completed(result)
                result.save(self.result_path)
                journal.remove()
        return result

    def run_layers(self, adapter: ModelAdapter, on_layer: Callable[[TokenFeatures], None]) -> None:
        """Run the layers without measuring: for what is taken from their features besides a result that exists."""
        for features in layer_features(adapter, self.samples.samples, batch_size=self.batch_size):
            on_layer(features)

    def note_kept(self, existing: MirResult) -> None:
        """Tell that nothing has to be measured."""
        self.note(f"already measured on {existing.created}: {self.result_path}. Use --force to measure again.")

    def note(self, text: str) -> None:
        """Tell the user something on standard error, once for all processes."""
        if self.group.rank == 0:
            print(f"mir: {on_a_line(text)}", file=sys.stderr)


@contextlib.contextmanager
def lock(folder: Path, group: Group) -> Iterator[None]:
    """Keep other runs out of an output folder, in which process 0 of the group writes. Collective."""
    with contextlib.ExitStack() as stack:
        with group.agreed(f"locking {folder}"):
            if group.rank == 0:
                stack.enter_context(only_writer(folder))
        yield
