"""Decoder layers one after another, each with its weights on the device while it is in use.

Where a checkpoint does not fit, its adapter says how to load and release one layer (``types.LayerWeights``). A layer is
used for all samples before the next one, so that a measurement reads every weight once, after the proof of the replay
has read it once; the next layer is read in a thread meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from mir_plugin.types import Decoder


class LayerStream:
    """Hands out layers with their weights; a resident decoder's layers as they are.

    Use in a ``with`` block: on leaving it, nothing is loaded any more::

        with LayerStream(decoder, device) as stream:
            for k in range(n_layers):
                with stream.layer(k) as layer:
                    ...
    """

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self._decoder = decoder
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layer-weights")
        self._ahead: tuple[int, Future[None]] | None = None
        self._in_use: int | None = None
        # Copies run on a stream of their own, beside the kernels of the layer in use. One for all layers: memory that
        # was allocated on one stream is not used again on another.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> LayerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_ahead()
        self._thread.shutdown()

    @contextmanager
    def layer(self, k: int) -> Iterator[nn.Module]:
        """Layer k (0-based) with its weights, for the length of the block.

        Raises:
            MirError: from the adapter, for weights that are missing or damaged.
        """
        weights = self._decoder.streamed
        if weights is None:
            yield self._decoder.layers[k]
            return
        self._await(k)
        self._in_use = k
        if weights.room_for_two and k + 1 < len(self._decoder.layers):
            self._ahead = (k + 1, self._thread.submit(self._load, k + 1))
        try:
            yield self._decoder.layers[k]
        finally:
            self._in_use = None
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()  # kernels may still be reading the weights
            weights.release(k)

    @contextmanager
    def during_forward(self) -> Iterator[None]:
        """A plain forward pass gives each layer its weights when it reaches it, and takes them at the next one.

        Enter this before other hooks are registered: those of a layer then run with its weights in place.
        """
        if self._decoder.streamed is None:
            yield
            return
        with ExitStack() as hooks, ExitStack() as current:

            def reach(k: int) -> None:
                if self._in_use != k:  # a hook may call its own layer again
                    current.close()
                    current.enter_context(self.layer(k))

            for k, layer in enumerate(self._decoder.layers):
                hooks.callback(layer.register_forward_pre_hook(lambda _, __, k=k: reach(k)).remove)
            yield

    def _await(self, k: int) -> None:
        if self._ahead and self._ahead[0] == k:
            (_, loading), self._ahead = self._ahead, None
            loading.result()
        else:
            self._forget_ahead()
            self._load(k)

    def _load(self, k: int) -> None:
        weights = self._decoder.streamed
        assert weights is not None
        if self._copies is None:
            weights.load(k)
            return
        with torch.cuda.stream(self._copies):
            weights.load(k)
        self._copies.synchronize()

    def _forget_ahead(self) -> None:
        if self._ahead and self._decoder.streamed:
            (k, loading), self._ahead = self._ahead, None
            wait([loading])
            self._decoder.streamed.release(k)
