"""Token features on disk: written sample by sample in any layer order, read back one layer at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.types import TokenFeatures

MODALITIES = ("vision", "text")


class Spool:
    """One temporary file without a name, so that not even a killed process leaves it behind.

    Rows are kept in the model's dtype, so reading back gives the very tensors that were added.
    """

    def __init__(self, n_layers: int, parent: Path | None = None) -> None:
        self._folder = parent or Path(tempfile.gettempdir())
        # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
        self._file = tempfile.TemporaryFile(dir=parent, buffering=0)  # noqa: SIM115 - closed by __exit__
        # For each modality and layer: where its rows lie, as (offset, bytes), and how many each sample has.
        self._parts: dict[str, list[list[tuple[int, int]]]] = {m: [[] for _ in range(n_layers)] for m in MODALITIES}
        self._counts: dict[str, list[list[int]]] = {m: [[] for _ in range(n_layers)] for m in MODALITIES}
        self._end = 0
        self._dtype: torch.dtype | None = None
        self._width = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forget what the block added, if it ends with an error."""
        before = (
            self._end,
            *({m: [list(one) for one in of[m]] for m in MODALITIES} for of in (self._parts, self._counts)),
        )
        try:
            yield
        except BaseException:
            self._end, self._parts, self._counts = before  # type: ignore[assignment]
            raise

    def add(self, features: TokenFeatures) -> None:
        """Append the rows of some samples at one layer. Raises MirError when the disk is full."""
        self._dtype, self._width = features.vision.dtype, features.vision.shape[1]
        for modality, rows, counts in (
            ("vision", features.vision, features.vision_counts),
            ("text", features.text, features.text_counts),
        ):
            self._parts[modality][features.layer - 1].append(self._appended(rows))
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

    def _appended(self, rows: Tensor) -> tuple[int, int]:
        """Write rows to the end of the file; where they begin, and how many bytes they take."""
        start = self._end
        content = rows.detach().cpu().contiguous().view(torch.uint8).flatten().numpy().data
        try:
            self._file.seek(start)
            while content:
                n_written = self._file.write(content)
                content, self._end = content[n_written:], self._end + n_written
        except OSError as error:
            raise MirError(
                f"this model's layers cannot be replayed one by one, so features go to a temporary file in "
                f"{self._folder}, which cannot take them ({error.strerror}). Set TMPDIR to a larger disk or measure "
                "fewer samples."
            ) from error
        return start, self._end - start

    def _rows(self, modality: str, layer: int) -> Tensor:
        assert self._dtype is not None, "read before anything was added"
        parts = self._parts[modality][layer - 1]
        content = bytearray(sum(size for _, size in parts))
        rest = memoryview(content)
        for offset, size in parts:
            self._file.seek(offset)
            while size:
                n_read = self._file.readinto(rest[:size])
                rest, size = rest[n_read:], size - n_read
        return torch.frombuffer(content, dtype=self._dtype).view(-1, self._width)
