"""A sweep on a Ray cluster: every worker is an actor with its own accelerator, and measures one checkpoint at a time.

Ray places workers, notices when one dies, and carries samples and results through its object store; workers share no
folder with the sweep but those of the checkpoints. What was handed to a worker that died goes to another one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import only_writer, write_atomically
from mir_plugin.results import PARTIAL_NAME, RESULT_NAME
from mir_plugin.selection.ray_options import RayOptions
from mir_plugin.selection.ray_worker import KEPT_FILES, Answer, CheckpointWorker, Task
from mir_plugin.selection.sweep import Sweep, SweepEntry
from mir_plugin.selection.sweep_measuring import SweepMeasuring

MAX_ATTEMPTS = 3
# How often the layers that workers have finished are fetched: what a killed sweep loses at most.
JOURNAL_SECONDS = 1.0
# How long a head that is there may take to accept a connection.
LISTENS_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass
class Worker:
    """An actor; ``pending`` is what it is asked for: to get ready, or to measure ``entry``."""

    actor: Any
    pending: Any
    entry: str | None = None
    last_run: str | None = None
    machine: str = ""
    journal: Any = None
    claims: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class RaySweep:
    """Measures what waits in a sweep on the workers of a cluster. A context manager: its end ends the workers."""

    def __init__(self, options: RayOptions, measuring: SweepMeasuring) -> None:
        """Connect to the cluster.

        Args:
            measuring: what to do with each checkpoint; ``on_device`` says where.
        Raises:
            MirError: if Ray is not installed, there is no such cluster, or no node has what a checkpoint needs.
        """
        self._ray, self._owns = _connected(options.address)
        self._options = options
        self._gpus = _gpus_of(self._ray) if options.gpus is None else options.gpus
        self._workers: list[Worker] = []
        self._attempts: Counter[str] = Counter()
        self._looked_at: set[str] = set()
        self._n_failed_starts = 0
        self._troubles: list[str] = []
        try:
            if not self._fitting() and options.max_parallel is None:
                raise MirError(
                    f"no node of the Ray cluster has the {self._gpus:g} GPU and {options.cpus} CPU that a checkpoint "
                    "needs. Lower --gpus-per-checkpoint or --cpus-per-checkpoint; where nodes are started on demand, "
                    "set --max-parallel."
                )
            self._measuring = measuring.on_device("cuda" if self._gpus else "cpu")
            self._stored = self._ray.put(self._measuring.for_workers())
        except BaseException:
            self.close()
            raise

    @property
    def loading(self) -> str:
        """Fingerprint of how workers load checkpoints."""
        return self._measuring.loading

    def __enter__(self) -> RaySweep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in self._workers:
            self._dismiss(worker)
        self._workers = []
        if self._owns:
            self._ray.shutdown()

    def run(self, sweep: Sweep) -> None:
        """Measure all that wait."""
        while self.step(sweep, JOURNAL_SECONDS):
            pass

    def step(self, sweep: Sweep, seconds: float) -> bool:
        """Hand out what waits, and take in what is finished within so many seconds; whether anything is left to do."""
        self._keep_existing(sweep)
        if not self.is_busy and not sweep.waiting() and not sweep.look_further():
            return False
        self._hire(len(self._to_hand_out(sweep)))
        self._hand_out(sweep)
        self._collect(sweep, seconds)
        self._fetch_journals(sweep)
        return self.is_busy or bool(sweep.waiting()) or sweep.look_further()

    @property
    def is_busy(self) -> bool:
        """Whether a worker measures a checkpoint."""
        return any(worker.entry for worker in self._workers)

    def _keep_existing(self, sweep: Sweep) -> None:
        """Results that are there already are found here: workers do not see the output folder."""
        for entry in sweep.waiting():
            if entry.name in self._looked_at:
                continue
            self._looked_at.add(entry.name)
            path = sweep.out_dir / entry.name / RESULT_NAME
            with sweep.noting_failure(entry.name):
                if kept := self._measuring.kept(entry.checkpoint, path, entry.look):
                    sweep.note_measured(entry.name, kept, seconds=0.0)
                    self._looked_at.discard(entry.name)

    def _hire(self, n_waiting: int) -> None:
        """Ask Ray for workers, as many as there is work and room for."""
        n_busy = sum(worker.entry is not None for worker in self._workers)
        for _ in range(min(self._room(), n_waiting + n_busy) - len(self._workers)):
            actor_class = self._ray.remote(
                num_cpus=self._options.cpus, num_gpus=self._gpus, max_restarts=0, max_concurrency=2
            )(CheckpointWorker)
            actor = actor_class.remote(self._stored, str(Path.cwd()), self._options.cpus)
            self._workers.append(Worker(actor, actor.ready.remote()))
        if not self._workers and n_waiting:
            raise MirError(f"no Ray worker is left. {self._troubles[-1] if self._troubles else 'All nodes are gone.'}")

    def _hand_out(self, sweep: Sweep) -> None:
        for worker in self._workers:
            waiting = self._to_hand_out(sweep)
            if worker.pending is not None or not waiting:
                continue
            entry = self._next_for(worker, waiting)
            self._looked_at.discard(entry.name)
            folder = sweep.out_dir / entry.name
            with sweep.noting_failure(entry.name):
                worker.claims.enter_context(only_writer(folder))
                if self._measuring.force and entry.look is None and not self._attempts[entry.name]:
                    (folder / PARTIAL_NAME).unlink(missing_ok=True)
                    task = Task(entry.checkpoint, {}, entry.look)
                else:
                    task = Task(entry.checkpoint, _texts(folder), entry.look)
                self._attempts[entry.name] += 1
                worker.entry, worker.last_run = entry.name, entry.run
                worker.pending = worker.actor.measure.remote(task)
                sweep.note(entry.name, state="running", error=None)

    def _to_hand_out(self, sweep: Sweep) -> list[SweepEntry]:
        """What waits and is not being measured: one that changed meanwhile waits again, for when its worker is done."""
        in_work = {worker.entry for worker in self._workers}
        return [entry for entry in sweep.waiting() if entry.name not in in_work]

    def _next_for(self, worker: Worker, waiting: Sequence[SweepEntry]) -> SweepEntry:
        """The next checkpoint of the run that the worker has loaded parts of; else of one that nobody works on."""
        others = {one.last_run for one in self._workers if one is not worker}
        for wanted in (
            [one for one in waiting if one.run == worker.last_run],
            [one for one in waiting if one.run not in others],
        ):
            if wanted:
                return wanted[0]
        left = Counter(one.run for one in waiting)
        return next(one for one in waiting if one.run == left.most_common(1)[0][0])

    def _collect(self, sweep: Sweep, seconds: float) -> None:
        pending = {worker.pending: worker for worker in self._workers if worker.pending is not None}
        if not pending:
            return
        done, _ = self._ray.wait(list(pending), num_returns=1, timeout=seconds)
        for reference in done:
            worker = pending[reference]
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._lost(worker, sweep, error)
                continue
            worker.pending = None
            if worker.entry is None:
                worker.machine, self._n_failed_starts = answer, 0
            else:
                self._take(worker, sweep, answer)

    def _take(self, worker: Worker, sweep: Sweep, answer: Answer) -> None:
        name, worker.entry, worker.journal = worker.entry or "", None, None
        if any(entry.name == name for entry in sweep.waiting()):  # it changed meanwhile
            worker.claims.close()
            return
        if answer.machine_fails:
            self._retire(worker, sweep, name, answer)
            return
        with sweep.noting_failure(name):
            if answer.traceback:
                logger.error("measuring %s failed on %s\n%s", name, worker.machine, answer.traceback)
            if answer.measured is None:
                raise MirError(answer.error or "it failed")
            folder = sweep.out_dir / name
            if not answer.measured.kept:
                answer.measured.result.save(folder / RESULT_NAME)
            for file, text in answer.files.items():
                write_atomically(folder / file, text)
            (folder / PARTIAL_NAME).unlink(missing_ok=True)
            sweep.note_measured(name, answer.measured, answer.seconds)
            self._attempts.pop(name, None)  # more samples may follow
        worker.claims.close()

    def _retire(self, worker: Worker, sweep: Sweep, name: str, answer: Answer) -> None:
        """A full or broken disk would fail every further checkpoint: the worker goes, another one tries."""
        self._troubles.append(f"On {worker.machine}: {answer.error}")
        self._workers.remove(worker)
        self._dismiss(worker)
        has_others = bool(self._workers) or self._room() > 0
        if has_others and self._attempts[name] < MAX_ATTEMPTS:
            logger.warning("%s is measured on another worker. On %s: %s", name, worker.machine, answer.error)
            sweep.note(name, state="waiting")
            return
        sweep.note(name, state="failed", result=None, error=answer.error)
        if not has_others:
            for entry in sweep.waiting():
                sweep.note(entry.name, state="failed", result=None, error=f"no worker was left. {self._troubles[-1]}")

    def _lost(self, worker: Worker, sweep: Sweep, error: Exception) -> None:
        """A worker died: with its process, its node, or the connection to it."""
        name = worker.entry
        self._workers.remove(worker)
        self._dismiss(worker)
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if name is None:
            self._n_failed_starts += 1
            if self._n_failed_starts >= MAX_ATTEMPTS:
                raise MirError(f"Ray workers do not start. Is mir-plugin installed on every node? {error}")
        elif self._attempts[name] < MAX_ATTEMPTS:
            logger.warning("%s is measured again: its worker on %s died (%s)", name, worker.machine, first_line)
            sweep.note(name, state="waiting")
        else:
            reason = f"its worker died in each of {MAX_ATTEMPTS} attempts, out of memory perhaps: {first_line}"
            sweep.note(name, state="failed", result=None, error=reason)

    def _dismiss(self, worker: Worker) -> None:
        with contextlib.suppress(Exception):  # it may be gone, or the cluster
            self._ray.kill(worker.actor)
        worker.claims.close()

    def _fetch_journals(self, sweep: Sweep) -> None:
        """Keep the layers that are finished, as a local run does, so that a killed sweep goes on from there."""
        for worker in self._workers:
            if worker.entry is None:
                continue
            if worker.journal is None:
                worker.journal = worker.actor.journal.remote()
            elif self._ray.wait([worker.journal], timeout=0)[0]:
                with contextlib.suppress(self._ray.exceptions.RayError):  # the death of the worker is noticed elsewhere
                    if text := self._ray.get(worker.journal):
                        write_atomically(sweep.out_dir / worker.entry / PARTIAL_NAME, text)
                worker.journal = None
        sweep.refresh()

    def _room(self) -> int:
        """Workers to have at a time; one on a machine that cannot write is not asked for again."""
        return (self._options.max_parallel or self._fitting()) - len(self._troubles)

    def _fitting(self) -> int:
        """Checkpoints that the nodes have room for, other jobs aside."""
        return sum(_fits(node["Resources"], self._options.cpus, self._gpus) for node in _nodes(self._ray))


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, connected; and whether the cluster was started for it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MirError(f"--ray needs Ray ({error}): pip install 'mir-plugin[ray]', on every node.") from error
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _require_listening(address)
    try:
        if address != "local":
            with contextlib.suppress(ConnectionError) if address == "auto" else contextlib.nullcontext():
                ray.init(address=address, **quiet)
                return ray, True
        ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises a bare Exception where one of its processes does not start
        ray.shutdown()
        advice = "" if address == "local" else " Start Ray there with `ray start`, or use --ray local."
        raise MirError(f"--ray {address}: {str(error).rstrip('.')}.{advice}") from error
    return ray, True


def _require_listening(address: str) -> None:
    """Raise MirError if nothing answers at a host:port, where Ray would try again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=LISTENS_SECONDS).close()
    except OSError as error:
        raise MirError(
            f"--ray {address}: nothing answers there ({error}). Start Ray with `ray start --head`, or use --ray local."
        ) from error


def _nodes(ray: Any) -> Iterator[dict[str, Any]]:
    return (node for node in ray.nodes() if node["Alive"])


def _gpus_of(ray: Any) -> float:
    return 1.0 if any(node["Resources"].get("GPU") for node in _nodes(ray)) else 0.0


def _fits(resources: dict[str, float], cpus: int, gpus: float) -> int:
    """Checkpoints that one node has room for; several may share a GPU, but none is spread over parts of two.

    >>> _fits({"CPU": 8, "GPU": 2}, 1, 0.4), _fits({"CPU": 3}, 1, 0), _fits({"CPU": 3}, 1, 1)
    (4, 3, 0)
    """
    of_cpus = math.floor(resources.get("CPU", 0) / cpus) if cpus else math.inf
    devices = math.floor(resources.get("GPU", 0))
    if gpus == 0:
        of_gpus: float = math.inf
    elif gpus < 1:
        of_gpus = devices * math.floor(1 / gpus + 1e-9)
    else:
        of_gpus = math.floor(devices / gpus)
    fitting = min(of_cpus, of_gpus)
    return 1 if math.isinf(fitting) else int(fitting)


def _texts(folder: Path) -> dict[str, str]:
    paths = [folder / name for name in KEPT_FILES]
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}
