"""How many samples go through a model at once: enough to fill the device, few enough to fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from mir_plugin.engine.memory import hidden_states_of_decoder
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Decoder, ModelAdapter

B = TypeVar("B")
T = TypeVar("T")
logger = logging.getLogger(__name__)

# Tokens that fill an accelerator: a product with a (4096, 4096) matrix then has 2048 tiles of 128 x 256 or more, some
# fifteen rounds of an H200's 132 multiprocessors, so the last round, partly idle, costs a few percent. Longer batches
# gain nothing and pad more.
ENOUGH_TOKENS = 8192
# Of the free memory, what a batch may take; the rest is for features and statistics, and for what is not foreseen.
SHARE_OF_FREE_MEMORY = 0.25


def default_batch_size(adapter: ModelAdapter, samples: Sequence[Sample]) -> int:
    """Samples per forward pass: one on a CPU; on an accelerator as many as fill it, and fit, with the longest text.

    Raises:
        MirError: from the adapter for a sample it cannot encode.
    """
    if adapter.device.type == "cpu" or not samples:
        return 1  # a CPU core is busy with one, and padding would only cost (benchmarks/RESULTS.md)
    longest = max(samples, key=lambda sample: len(sample.text))
    n_tokens = adapter.encode([longest]).vision_mask.shape[1]
    most = ENOUGH_TOKENS // n_tokens
    free = free_memory(adapter.device)
    if free is not None:
        most = min(most, int(SHARE_OF_FREE_MEMORY * free) // bytes_of_layer(adapter.decoder, n_tokens))
    return max(1, min(most, len(samples), getattr(adapter, "max_batch", None) or most))


def bytes_of_layer(decoder: Decoder, n_tokens: int) -> int:
    """What one decoder layer allocates for a sample of so many tokens: outputs of its projections, some copies of the
    hidden states, and an attention mask in full."""
    d, dtype = hidden_states_of_decoder(decoder)
    widths = [one.out_features for one in decoder.layers[0].modules() if isinstance(one, nn.Linear)]
    return dtype.itemsize * n_tokens * (sum(widths) + 8 * d + 2 * n_tokens)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None where that is not known."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def packed_by_length(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Indices of the samples in batches of texts about equally long, so that little of a batch is padding.

    >>> packed_by_length([Sample(str(n), b"", "x" * n) for n in (5, 1, 4, 2)], batch_size=2)
    [[1, 3], [2, 0]]
    """
    order = list(range(len(samples)))
    if batch_size > 1:
        order.sort(key=lambda index: len(samples[index].text))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def halves(indices: Sequence[int]) -> list[tuple[Sequence[int], int]]:
    """The indices in two, the first half longer by one at most; each with its length."""
    middle = -(-len(indices) // 2)
    return [(indices[:middle], middle), (indices[middle:], len(indices) - middle)]


class BatchLimit:
    """The most samples in one batch: halved when the device runs out of memory, for all batches that follow.

    Not where processes run in step (``collective``): a process that halves its batch would gather weights more often
    than the others. There all begin anew with smaller batches.
    """

    def __init__(self, size: int, *, collective: bool = False) -> None:
        self.size = size
        self._collective = collective
        self._told = False

    def run(
        self, batch: B, size: int, work: Callable[[B], T], halves: Callable[[B], list[tuple[B, int]]]
    ) -> Iterator[T]:
        """What ``work`` makes of the batch, or of its halves where it is too large.

        Args:
            size: samples in the batch.
            halves: the batch in two, each with its size.
        Raises:
            torch.OutOfMemoryError: if not even one sample fits, or processes run in step.
        """
        if size <= self.size:
            try:
                done = work(batch)
            except torch.cuda.OutOfMemoryError:
                if size == 1 or self._collective:
                    raise
            else:
                yield done
                return
            self._lower(size)  # not before the error and its frames, which hold tensors, are gone
        for half, half_size in halves(batch):
            yield from self.run(half, half_size, work, halves)

    def _lower(self, failed: int) -> None:
        self.size = lowered(failed, tell=not self._told)
        self._told = True


def lowered(failed: int, *, tell: bool = True) -> int:
    """Half of a batch that was too large for the device, whose cached memory is returned."""
    size = -(-failed // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if tell:
        logger.warning(
            "out of GPU memory with %d samples per forward pass: going on with %d or fewer. --batch-size %d avoids "
            "the attempt.",
            failed,
            size,
            size,
        )
    return size
