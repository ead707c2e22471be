"""One measurement that a command asks for: a finished one is kept, a killed one continues, one run writes a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from mir_plugin.engine.features import layer_features
from mir_plugin.files.atomic import only_writer
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.resume import Journal, finished_result, request_fingerprint
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.weights.device import chosen_device
from mir_plugin.model_adapters.weights.shared_parts import SharedParts
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import PARTIAL_NAME, MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import ModelAdapter, TokenFeatures


@dataclass(frozen=True)
class Request:
    """A checkpoint, how and on what it is to be measured, and where the result goes.

    Attributes:
        result_path: of its mir.json; the folder is held while it is measured.
        batch_size: samples per forward pass; None takes ``engine.default_batch_size``.
        force: measure from the first layer, whatever is there.
        group: the processes that measure together; process 0 reads and writes the files.
        further: what changes the result besides, name → value; counts in the fingerprint.
    """

    checkpoint: Path
    load: LoadOptions
    sample_set: SampleSet
    config: MirConfig
    result_path: Path
    batch_size: int | None = None
    with_uncertainty: bool = True
    force: bool = False
    group: Group = ALONE
    further: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that is asked for. Of the device its kind counts, not which one it is of several."""
        device = self.load.device if self.load.device != "auto" else chosen_device("auto").type
        options = {**dataclasses.asdict(self.load), "device": device.partition(":")[0], **self.further}
        return request_fingerprint(self.checkpoint, options, self.config, self.sample_set.fingerprint)

    def earlier(self) -> MirResult | None:
        """The result that is there if it answers this very request; None if it is to be measured. Collective.

        Raises:
            MirError: if another checkpoint's result is there and ``force`` is not set.
        """
        existing = None
        with self.group.agreed("looking for an earlier result"):
            if self.group.rank == 0 and not self.force:
                existing = finished_result(
                    self.result_path, self.fingerprint, self.checkpoint, with_uncertainty=self.with_uncertainty
                )
                if existing is None and self.result_path.is_file():
                    self.note(f"{self.result_path} was measured with other options, samples or files: it is replaced.")
        return self.group.broadcast(existing)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out of the result's folder. Collective."""
        return held(self.result_path.parent, self.group)

    def adapter(self, shared: SharedParts | None = None) -> ModelAdapter:
        """The checkpoint, loaded; ``shared`` as for ``load_adapter``. Collective."""
        with self.group.agreed(f"loading {self.checkpoint}"):
            return load_adapter(self.checkpoint, self.load, shared=shared)

    def measure(self, adapter: ModelAdapter, watch: Callable[[TokenFeatures], None] | None = None) -> MirResult:
        """Measure and save, from the layer on where a killed run of this request ended; the folder has to be held.

        Args:
            watch: called with every layer's features.
        """
        journal = Journal(self.result_path.with_name(PARTIAL_NAME))
        if self.force and self.group.rank == 0:
            journal.remove()
        result = measure(
            adapter,
            self.sample_set,
            self.config,
            checkpoint=str(self.checkpoint),
            batch_size=self.batch_size,
            with_uncertainty=self.with_uncertainty,
            group=self.group,
            journal=journal,
            request=self.fingerprint if self.group.rank == 0 else None,
            watch=watch,
        )
        if self.group.rank == 0:
            result.save(self.result_path)
            journal.remove()
        return result

    def show(self, adapter: ModelAdapter, watch: Callable[[TokenFeatures], None]) -> None:
        """Run the layers without measuring, for what is taken from their features besides a result that is there."""
        for features in layer_features(adapter, self.sample_set.samples, batch_size=self.batch_size):
            watch(features)

    def note(self, text: str) -> None:
        """Tell the user something on standard error, once for all processes."""
        if self.group.rank == 0:
            typer.echo(f"mir: {text}", err=True)


@contextlib.contextmanager
def held(folder: Path, group: Group) -> Iterator[None]:
    """Keep other runs out of an output folder, in which process 0 of the group writes. Collective."""
    with contextlib.ExitStack() as stack:
        with group.agreed(f"taking {folder} for this run"):
            if group.rank == 0:
                stack.enter_context(only_writer(folder))
        yield
