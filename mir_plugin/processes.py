"""Several processes measure one sample set: each runs a shard of the samples, all get the same statistics.

Launch with ``torchrun`` or ``accelerate launch``. Most of what is exchanged is small (norms, counts, errors). Features
are exchanged only where a layer has outliers, for the exact coordinate-wise median; covariances are summed in place.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mir_plugin.errors import MirError

T = TypeVar("T")


class OtherProcessError(MirError):
    """Another process failed; all processes of the group know, so that nobody has to be told again."""


# How long a process waits for the slowest one, which may have a whole layer of its shard to run.
TIMEOUT = datetime.timedelta(minutes=30)


class Group:
    """The processes of one measurement. In a group of one, the default, every operation returns its argument.

    The operations are collective: every process of the group calls them, in the same order. They are named after those
    of ``torch.distributed``.

    Attributes:
        rank: 0 to size − 1; process 0 prints and writes.
        size: number of processes.
        device: where tensors are sent from and received; host memory unless the backend needs an accelerator.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        device: torch.device | None = None,
        tensor_group: dist.ProcessGroup | None = None,
        object_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Describe a group whose ``torch.distributed`` is initialised, or a single process.

        Args:
            device: None is host memory.
            tensor_group: exchanges tensors on ``device``; None is the default group.
            object_group: exchanges other objects; None is the default group.
        """
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")
        self._tensor_group, self._object_group = tensor_group, object_group

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: a run of neighbours, so that shards in rank order are the items in order.

        Shares differ by one item at most; with fewer items than processes, process 0 is among those that have one.
        """
        start, end = (-(-len(items) * rank // self.size) for rank in (self.rank, self.rank + 1))
        return items[start:end]

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, in rank order. Values are pickled; keep them small."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._connected():
            dist.all_gather_object(values, value, group=self._object_group)
        return values

    def broadcast(self, value: T) -> T:
        """The value of process 0, in every process."""
        return cast("T", self.all_gather_object(value if self.rank == 0 else None)[0])

    def broadcast_tensor(self, value: Tensor, source: int) -> Tensor:
        """The tensor of one process, in every process; the others give any tensor of its shape and type."""
        if self.size == 1 or value.numel() == 0:
            return value
        sent = value.contiguous().to(self.device)
        with self._connected():
            dist.broadcast(sent, source, group=self._tensor_group)  # of all processes: ranks are the same in each group
        return sent.to(value.device)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over all processes of tensors of one shape; the same bits in each."""
        if self.size == 1:
            return value
        total = value.to(self.device, copy=True)
        with self._connected():
            dist.all_reduce(total, group=self._tensor_group)
        return total.to(value.device)

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in rank order; a process may have none. (rows, …) → (all rows, …)."""
        if self.size == 1:
            return rows
        counts = self.all_gather_object(len(rows))
        return self._exchanged([rows] * self.size, [(count, *rows.shape[1:]) for count in counts])

    def all_to_all_columns(self, rows: Tensor) -> Tensor:
        """All processes' rows of this process's share of the columns: (rows, d) → (all rows, about d / size)."""
        if self.size == 1:
            return rows
        shares = rows.tensor_split(self.size, dim=1)
        width = shares[self.rank].shape[1]
        return self._exchanged(shares, [(count, width) for count in self.all_gather_object(len(rows))])

    @contextmanager
    def agreed(self, task: str) -> Iterator[None]:
        """Make a failure in one process fail all of them; otherwise the others would wait for it.

        The block must not contain collective operations that do not begin with ``in_step``.

        Raises:
            MirError: in the processes that did not fail, with the cause. A failing process raises its own error.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except OtherProcessError:
            raise
        except Exception as raised:  # sent to the other processes, then raised again below
            error = raised
        self._agree(task, "end", error)

    def in_step(self, task: str) -> None:
        """Begin a collective operation inside an ``agreed`` block, which a process may have left with an error.

        Raises:
            OtherProcessError: in every process that has come here, if one has failed, or does something else.
        """
        if self.size > 1:
            self._agree(task, task, None)

    def _agree(self, task: str, place: str, error: Exception | None) -> None:
        """Exchange errors; that of a process that failed meets what the others exchange next, wherever that is."""
        sent = (place, None if error is None else f"{type(error).__name__}: {error}")
        received = self.all_gather_object(sent)
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(received):
            if failure is not None:
                raise OtherProcessError(f"process {rank} of {self.size} failed: {task}. Its error: {failure}")
        if len({place for place, _ in received}) > 1:
            raise OtherProcessError(f"the processes are not in step: {[place for place, _ in received]}.")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise MirError(
                f"process {self.rank} of {self.size} lost its connection to the others: one of them ended or hung; see "
                f"its output. The connection failed with: {error}"
            ) from error

    def _exchanged(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Send one part to each process and stack the parts received; as bytes, which every backend supports."""
        item_size = sent[0].element_size()
        outgoing = [item_size * part.numel() for part in sent]
        incoming = [item_size * torch.Size(shape).numel() for shape in shapes]
        content = torch.cat([part.flatten() for part in sent]).view(torch.uint8).to(self.device)
        received = torch.empty(sum(incoming), dtype=torch.uint8, device=self.device)
        with self._connected():
            dist.all_to_all_single(received, content, incoming, outgoing, group=self._tensor_group)
        rows = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return received.view(sent[0].dtype).view(rows).to(sent[0].device)


ALONE = Group()


@contextmanager
def launched_group(device: str) -> Iterator[Group]:
    """The processes that a launcher (torchrun, accelerate) started together with this one; or this one alone.

    Tensors use NCCL if every process has its own accelerator, otherwise gloo.

    Args:
        device: torch device string of this process, as ``own_device`` gives it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current_group()
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield _over_nccl(current_group(), device)
    finally:
        dist.destroy_process_group()


def _over_nccl(group: Group, device: str) -> Group:
    """The group with NCCL for its tensors if all of its processes can use it, otherwise the group itself.

    NCCL refuses several processes on one accelerator, as with ``--device cuda:0``.
    """
    own = device == f"cuda:{os.environ.get('LOCAL_RANK')}" and dist.is_nccl_available()
    if not all(group.all_gather_object(own)):  # a process with another backend than the rest would wait forever
        return group
    torch.cuda.set_device(device)
    return Group(group.rank, group.size, device=torch.device(device), tensor_group=_all_over("nccl"))


def _all_over(backend: str) -> dist.ProcessGroup:
    """A second group of all processes, with another backend. Collective."""
    return cast("dist.ProcessGroup", dist.new_group(backend=backend, timeout=TIMEOUT))  # of all: never a non-member


def current_group() -> Group:
    """The group of an initialised ``torch.distributed``; or this process alone. Collective on first use."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return _group_of(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _group_of(world: Any) -> Group:
    nccl = dist.get_backend(world) == "nccl"
    return Group(
        dist.get_rank(),
        dist.get_world_size(),
        # NCCL cannot send from host memory. Whoever initialised it has set the accelerator of this process.
        device=torch.device("cuda", torch.cuda.current_device()) if nccl else None,
        # Counts and errors stay off the accelerator, so that a process out of device memory can still report it.
        object_group=_all_over("gloo") if nccl else None,
    )


def own_device(device: str) -> str:
    """The device of this process among those launched on this machine: its own accelerator if there are several.

    Args:
        device: as given by the user; one with an index ("cuda:1") is kept.
    """
    if device not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"
