"""A sweep divided among the tasks of a job array: which task measures what, and which one finishes last.

The tasks share an output folder and nothing else. Which checkpoint is whose stands in a plan that the first task to
come writes there; a checkpoint that appears later is added to the share that has fewest. A version of the plan is never
changed, and is created in one step that succeeds in one task only, so that no locks are needed: network file systems of
clusters often have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import not_writable, write_atomically

TABLE_NAME, FINISHED_NAME = "table.json", "finished"
Plan = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``n``, counted from 1."""

    number: int
    n: int

    def folder(self, out_dir: Path) -> Path:
        """Of this task alone: its table, and the mark that it has finished."""
        return self._common(out_dir) / str(self.number)

    def planned(self, out_dir: Path, checkpoints: Sequence[Path], names: Sequence[str]) -> dict[Path, str]:
        """This share of the checkpoints, and the folder name of each; writes or extends the plan where that is needed.

        Args:
            checkpoints: in training order; neighbours come into one share, because they have most in common.
            names: for those of them that are not in the plan yet.
        Raises:
            MirError: if the plan cannot be read or written.
        """
        places = {str(checkpoint.resolve()): checkpoint for checkpoint in checkpoints}
        wanted = dict(zip(places, names, strict=True))
        while True:
            version, plan = _latest(self._common(out_dir))
            missing = {place: name for place, name in wanted.items() if place not in plan}
            if not missing:
                break
            path = self._common(out_dir) / f"plan-{version + 1:04}.json"
            _create(path, json.dumps({**plan, **self._assigned(missing, plan)}, indent=1) + "\n")
        return {
            places[place]: name for place, (number, name) in plan.items() if number == self.number and place in places
        }

    def start(self, out_dir: Path) -> None:
        """Take back the mark of an earlier time. Raises MirError if the folder cannot be written."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder(out_dir) / FINISHED_NAME).unlink()

    def finish(self, out_dir: Path) -> bool:
        """Mark this share as finished; whether it was the last. Of two at the same moment both may be."""
        write_atomically(self.folder(out_dir) / FINISHED_NAME, "\n")
        return all((self._common(out_dir) / str(i) / FINISHED_NAME).exists() for i in range(1, self.n + 1))

    def tables(self, out_dir: Path) -> list[Path]:
        """The tables of all shares that have begun."""
        return sorted(self._common(out_dir).glob(f"*/{TABLE_NAME}"))

    def _common(self, out_dir: Path) -> Path:
        return out_dir / f"shards-of-{self.n}"

    def _assigned(self, missing: Mapping[str, str], plan: Plan) -> dict[str, tuple[int, str]]:
        """Neighbours together at first; later ones to the smallest share. Names that are taken get a number."""
        numbers = range(1, self.n + 1)
        if not plan:
            count = len(missing)
            return {place: (index * self.n // count + 1, name) for index, (place, name) in enumerate(missing.items())}
        sizes = Counter(dict.fromkeys(numbers, 0))
        sizes.update(number for number, _ in plan.values())
        taken = {name for _, name in plan.values()}
        assigned = {}
        for place, name in missing.items():
            number = min(numbers, key=lambda one: sizes[one])
            sizes[number] += 1
            free = next(one for i in range(len(taken) + 1) if (one := f"{name}_{i + 1}" if i else name) not in taken)
            taken.add(free)
            assigned[place] = number, free
        return assigned


def parsed_shard(text: str) -> Shard:
    """The shard that "I/N" names. Raises MirError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise MirError(f"--shard {text}: expected I/N, with I from 1 to N, for example 3/8.")
    return Shard(int(match[1]), int(match[2]))


def shard_of_array_task(environment: Mapping[str, str]) -> Shard | None:
    """The shard of a task of a Slurm job array; None outside one, or in an array of one task.

    >>> shard_of_array_task({"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "8"})
    Shard(number=7, n=8)

    Raises:
        MirError: if the tasks are not numbered evenly, as in ``--array=1,5,6``.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment or "SLURM_ARRAY_TASK_COUNT" not in environment:
        return None
    names = {"ID": "", "COUNT": "", "MIN": environment["SLURM_ARRAY_TASK_ID"], "STEP": "1"}
    at, n, first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", text)) for name, text in names.items())
    if n == 1:
        return None
    number, rest = divmod(at - first, step)
    if rest or number >= n:
        raise MirError(
            f"task {at} of a Slurm array of {n} tasks whose numbers are not evenly spaced: its share is unknown. "
            "Name it with --shard I/N, or --shard 1/1 for all checkpoints."
        )
    return Shard(number + 1, n)


def _latest(folder: Path) -> tuple[int, Plan]:
    paths = sorted(folder.glob("plan-*.json"))
    if not paths:
        return 0, {}
    try:
        entries = json.loads(paths[-1].read_text(encoding="utf-8"))
        plan = {str(place): (int(number), str(name)) for place, (number, name) in entries.items()}
        return int(paths[-1].stem.removeprefix("plan-")), plan
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MirError(f"{paths[-1]} cannot be read ({error}). Delete {folder}; results are kept.") from error


def _create(path: Path, text: str) -> None:
    """Write a file that must not be there yet; does nothing where another task was quicker."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # creates the whole file in one step, over NFS too
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
