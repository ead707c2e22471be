"""Token features on disk: written sample by sample in any layer order, read back one layer at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from mir_plugin.types import TokenFeatures


class Spool:
    """A temporary folder with two files a layer (vision, text), removed when the ``with`` block ends.

    Rows are kept in the model's dtype, so reading back gives the very tensors that were added.
    """

    def __init__(self, n_layers: int, parent: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mir-spool-", dir=parent)
        self._counts: dict[str, list[list[int]]] = {m: [[] for _ in range(n_layers)] for m in ("vision", "text")}
        self._dtype: torch.dtype | None = None
        self._width = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, features: TokenFeatures) -> None:
        """Append the rows of some samples at one layer."""
        self._dtype, self._width = features.vision.dtype, features.vision.shape[1]
        for modality, rows, counts in (
            ("vision", features.vision, features.vision_counts),
            ("text", features.text, features.text_counts),
        ):
            with self._path(modality, features.layer).open("ab") as file:
                _write(file, rows)
            self._counts[modality][features.layer - 1] += counts

    def read(self, layer: int, device: torch.device) -> TokenFeatures:
        """All rows added for one layer, in the order of adding."""
        return TokenFeatures(
            layer,
            self._rows("vision", layer).to(device),
            self._rows("text", layer).to(device),
            tuple(self._counts["vision"][layer - 1]),
            tuple(self._counts["text"][layer - 1]),
        )

    def _rows(self, modality: str, layer: int) -> Tensor:
        assert self._dtype is not None, "read before anything was added"
        content = bytearray(self._path(modality, layer).read_bytes())
        return torch.frombuffer(content, dtype=self._dtype).view(-1, self._width)

    def _path(self, modality: str, layer: int) -> Path:
        return Path(self._folder.name) / f"layer-{layer:03d}.{modality}"


def _write(file: BinaryIO, rows: Tensor) -> None:
    file.write(rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
