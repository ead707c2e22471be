"""Features of samples that ran before, on disk, so that a larger set of samples runs only what is new."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from mir_plugin.engine.inputs import ReceivedSample
from mir_plugin.engine.spool import Spool
from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import TokenFeatures

logger = logging.getLogger(__name__)


class KeptFeatures:
    """All layers' features of one checkpoint's samples, in a temporary file without a name.

    A run calls ``begin``, ``joined`` for each layer, and ``end``. Where they would take more than half of what is free
    on the disk, samples run again.

    Attributes:
        more_follow: whether what runs now is kept for a further run.
    """

    def __init__(self, n_layers: int) -> None:
        self._n_layers = n_layers
        self._spool: Spool | None = None
        self._held: dict[str, ReceivedSample] = {}
        self._running: list[str] | None = None
        self._disk_full = False
        self.more_follow = True

    def __enter__(self) -> KeptFeatures:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back; what was kept has to run again."""
        if self._spool:
            self._spool.__exit__()
        self._spool, self._held, self._running, self._disk_full = None, {}, None, False

    def begin(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those of the samples that have to run."""
        if self._running is not None:  # the last run was broken off: layers hold different samples
            self.close()
        self._spool = self._spool or Spool(self._n_layers)
        missing = [sample for sample in samples if sample.sample_id not in self._held]
        self._running = [sample.sample_id for sample in missing]
        return missing

    def joined(self, features: TokenFeatures, samples: Sequence[Sample]) -> TokenFeatures:
        """One layer's features of all samples: of those that ran, and of those that were kept."""
        joined = features
        if self._held and self._spool:
            kept = self._spool.read(features.layer, features.vision.device)
            joined = _in_order(replace(kept, sample_ids=tuple(self._held)), features, samples)
        if self._spool and self.more_follow and not self._disk_full:
            self._keep(features, self._spool)
        return joined

    def _keep(self, features: TokenFeatures, spool: Spool) -> None:
        n_bytes = self._n_layers * sum(rows.numel() * rows.element_size() for rows in (features.vision, features.text))
        free = shutil.disk_usage(tempfile.gettempdir()).free
        try:
            if features.layer == 1 and n_bytes > free / 2:
                raise MirError(f"they take {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in TMPDIR.")
            spool.add(features)
        except MirError as error:
            logger.warning("features are not kept, and samples will run again if more are measured: %s", error)
            self._disk_full = True

    def end(self, received: Sequence[ReceivedSample], samples: Sequence[Sample]) -> list[ReceivedSample]:
        """What reached the model of all samples, given that of those that ran."""
        known = self._held | dict(zip(self._running or (), received, strict=True))
        if self._disk_full or not self.more_follow:
            self.close()
        else:
            self._held, self._running = known, None
        return [known[sample.sample_id] for sample in samples]


def _in_order(kept: TokenFeatures, new: TokenFeatures, samples: Sequence[Sample]) -> TokenFeatures:
    """Rows of both, sample by sample."""
    vision = {**_rows(kept.vision, kept.vision_counts, kept), **_rows(new.vision, new.vision_counts, new)}
    text = {**_rows(kept.text, kept.text_counts, kept), **_rows(new.text, new.text_counts, new)}
    ids = tuple(sample.sample_id for sample in samples)
    return TokenFeatures(
        new.layer,
        torch.cat([vision[one] for one in ids]),
        torch.cat([text[one] for one in ids]),
        tuple(len(vision[one]) for one in ids),
        tuple(len(text[one]) for one in ids),
        ids,
    )


def _rows(rows: Tensor, counts: Sequence[int], features: TokenFeatures) -> dict[str, Tensor]:
    return dict(zip(features.sample_ids, rows.split(list(counts)), strict=True))
