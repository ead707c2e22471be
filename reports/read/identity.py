"""Which records belong to one checkpoint: by path, by name as given to the host tool, by weights fingerprint."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Hashable, Iterable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from mir_plugin.measurement.checkpoint_names import is_only_a_step
from mir_plugin.reports.read.records import CheckpointRef

PATH, NAME, WEIGHTS, VLMEVALKIT_MODEL = "path:", "name:", "weights:", "vlmevalkit:"
NOT_IN_PATHS = re.compile(r'[<>"|\x00-\x1f]')  # no portable path or hub name holds these

K = TypeVar("K", bound=Hashable)


def checkpoint_ref(text: str, weights: str = "", *, place: str = "", date: str = "") -> CheckpointRef:
    """Reference for a checkpoint named by a path or a hub name, as given to ``pretrained=`` or ``mir run``.

    A relative path that exists is resolved, so that ``ckpts/a``, ``./ckpts/a/`` and its absolute path are one.
    Equal fingerprints of the weights join copies that lie at different places.

    Args:
        place: the folder that the name meant when it was used, if that was written down.
        date: ISO 8601, when the name was used. Links that were changed later are not followed: nobody knows where they
            led before.
    """
    name = posixpath.normpath(text.strip())
    of_weights = (WEIGHTS + weights,) if weights else ()
    if place:
        # A name that ends otherwise than its folder is a link's, and may mean another folder tomorrow.
        names = (NAME + name,) if PurePosixPath(name).name == PurePosixPath(place).name else ()
        return CheckpointRef(label=place, keys=(PATH + place, *names, *of_weights))
    link = _link_changed_after(name, date)
    if link:
        return CheckpointRef(name, (PATH + os.path.abspath(name), *of_weights), moved_link=link)  # noqa: PTH100
    keys = [NAME + name]
    path = resolved(name)
    if path is not None and (name.startswith(("/", "~")) or os.path.exists(name)):  # noqa: PTH110 - never raises
        keys.insert(0, PATH + path)
    return CheckpointRef(label=name, keys=(*keys, *of_weights))


def _link_changed_after(name: str, date: str) -> str:
    """The first link in a path that is younger than a date; empty if there is none, or the date is unknown."""
    try:
        used = datetime.fromisoformat(date).timestamp()
        path = Path(os.path.abspath(Path(name).expanduser()))  # noqa: PTH100 - links are looked at one by one
        for part in (*reversed(path.parents), path):
            if part.is_symlink() and part.lstat().st_mtime > used:
                return str(part)
    except (OSError, RuntimeError, ValueError):  # no date, or no path
        pass
    return ""


def resolved(text: str) -> str | None:
    """The absolute path that a text means, links followed; None where it cannot mean one (``~nobody``, a loop)."""
    try:
        return str(Path(text).expanduser().resolve())
    except (OSError, RuntimeError, ValueError):
        return None


def vlmevalkit_ref(model: str) -> CheckpointRef:
    """Reference for a VLMEvalKit model name; its trees do not record the path."""
    return CheckpointRef(label=model, keys=(VLMEVALKIT_MODEL + model,))


def plain(key: str) -> str:
    """A key without its kind, as a person would write it."""
    return key.split(":", 1)[1]


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """For each of several distinct labels the fewest trailing path parts that distinguish it from the others.

    Joined as sweeps name the results of these checkpoints, so that one is called the same everywhere.

    >>> short_names(["run-1/checkpoint-500", "run-2/checkpoint-500", "llava"])
    {'llava': 'llava', 'run-1/checkpoint-500': 'run-1_checkpoint-500', 'run-2/checkpoint-500': 'run-2_checkpoint-500'}

    A label that is not a path stays whole, even with slashes:

    >>> short_names(["<b>ours</b>"])
    {'<b>ours</b>': '<b>ours</b>'}
    """
    names: dict[str, str] = {}
    pending, depth = list(labels), 1
    while pending:
        tails = {label: _tail(label, depth) for label in pending}
        counts: dict[str, int] = {}
        for tail in [*tails.values(), *names.values()]:
            counts[tail] = counts.get(tail, 0) + 1
        for label, tail in tails.items():
            deepest = len(_parts(label)) <= depth
            if (counts[tail] == 1 and not is_only_a_step(tail)) or deepest:
                names[label] = tail
        pending = [label for label in pending if label not in names]
        depth += 1
    return names


def _tail(label: str, depth: int) -> str:
    parts = _parts(label)
    return "_".join(part for part in parts[-depth:] if part != "/") if len(parts) > 1 else label


def _parts(label: str) -> tuple[str, ...]:
    return (label,) if NOT_IN_PATHS.search(label) else PurePosixPath(label).parts


class Clusters(Generic[K]):
    """Sets of keys that belong together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[K, K] = {}

    def join(self, keys: Iterable[K]) -> None:
        """Put all these keys into one set."""
        roots = [self.root(key) for key in keys]
        for root in roots[1:]:
            self._parent[self.root(root)] = self.root(roots[0])

    def root(self, key: K) -> K:
        """The representative of the key's set; a new key is a set of its own."""
        self._parent.setdefault(key, key)
        path = []
        while self._parent[key] != key:
            path.append(key)
            key = self._parent[key]
        for visited in path:
            self._parent[visited] = key
        return key
