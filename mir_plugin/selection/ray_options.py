"""What a sweep asks of a Ray cluster. Imports neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RayOptions:
    """What a sweep asks of a Ray cluster.

    Attributes:
        address: of the cluster; "auto" takes the one this machine belongs to, or starts one for the sweep; "local"
            always starts one.
        gpus: for each checkpoint, fractions included; None is one where the cluster has GPUs, else none.
        cpus: for each checkpoint; as many threads are used on a CPU.
        max_parallel: checkpoints at a time; None is what fits the cluster.
    """

    address: str = "auto"
    gpus: float | None = None
    cpus: int = 1
    max_parallel: int | None = None
