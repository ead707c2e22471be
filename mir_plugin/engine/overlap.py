"""A second queue of work on an accelerator: a layer's statistics run in it beside the next layer's forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class SecondStream:
    """A CUDA stream beside the one in use; on other devices, work in it simply runs at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> Any:
        """The present end of the first stream's queue."""
        return torch.cuda.current_stream(self._device).record_event() if self._stream else None

    @contextmanager
    def after(self, mark: Any) -> Iterator[None]:
        """Queue the block's work in the second stream, to begin when the first has come to the mark."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let what the first stream is given next begin when the second has done all it was given."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


class OnHost:
    """A tensor on its way to host memory, read without a wait when the device has long finished it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._done = torch.cuda.current_stream(tensor.device).record_event() if tensor.device.type == "cuda" else None

    def read(self) -> torch.Tensor:
        """The values; waits until they have come."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
