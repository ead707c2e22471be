"""Which training run and step a checkpoint folder belongs to, the order of training, and names for its results."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mir_plugin.samples.sources import natural_order

DEFAULT_OUT = Path("mir-out")
_NUMBERED = re.compile(
    r"(?:(?P<run>.+?)[-_.])??(?:checkpoint|ckpt|global[-_]?step|step|iter|epoch)[-_]?(?P<step>\d+)", re.IGNORECASE
)


def place_of(name: str) -> str:
    """The folder that a name means now, absolute and without links; empty if it means none."""
    try:
        folder = Path(name)
        return str(folder.resolve()) if folder.is_dir() else ""
    except (OSError, RuntimeError, ValueError):  # no name of a file, or a loop of links
        return ""


def step_in_name(name: str) -> int | None:
    """The step that a folder is named after, if it is.

    >>> step_in_name("checkpoint-1400"), step_in_name("llava-7b_step-20"), step_in_name("vicuna-13")
    (1400, 20, None)
    """
    match = _NUMBERED.fullmatch(name)
    return int(match["step"]) if match else None


def is_only_a_step(name: str) -> bool:
    """Whether a folder's name tells the step and not the run, so that checkpoints of several runs share it.

    >>> is_only_a_step("step-20"), is_only_a_step("llava-7b_step-20"), is_only_a_step("vicuna-13")
    (True, False, False)
    """
    match = _NUMBERED.fullmatch(name)
    return match is not None and match["run"] is None


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint: by its name; else, as for the last one of a run, by its trainer_state.json."""
    step = step_in_name(checkpoint.name)
    if step is not None:
        return step
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        step = state.get("global_step")
    except (OSError, ValueError, AttributeError, RecursionError):  # no such file, or none of the trainer's
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def run_of(checkpoint: Path) -> str:
    """The run that a checkpoint belongs to: what lies above a numbered folder, else the folder itself.

    >>> run_of(Path("runs/a/checkpoint-20")), run_of(Path("runs/a")), run_of(Path("runs/b-step-5"))
    ('runs/a', 'runs/a', 'runs/b')
    >>> run_of(Path("runs/a/global_step20")), run_of(Path("runs/b_global_step20"))
    ('runs/a', 'runs/b')
    """
    match = _NUMBERED.fullmatch(checkpoint.name)
    if match is None:
        return str(checkpoint)
    return str(checkpoint.parent / match["run"] if match["run"] else checkpoint.parent)


def in_training_order(checkpoints: Iterable[Path]) -> list[Path]:
    """Run after run by name, each by step; a checkpoint whose step is unknown comes last in its run."""

    def key(checkpoint: Path) -> tuple[object, ...]:
        step = step_of(checkpoint)
        return natural_order(run_of(checkpoint)), math.inf if step is None else step, natural_order(str(checkpoint))

    return sorted(dict.fromkeys(checkpoints), key=key)


def result_name(checkpoint: Path, taken: Iterable[str] = ()) -> str:
    """Folder name for a checkpoint's result: its own, behind its run's if it is called after a step; unique.

    >>> result_name(Path("runs/llava/checkpoint-20")), result_name(Path("b/llava"), taken={"llava"})
    ('llava_checkpoint-20', 'b_llava')
    """
    path = Path(os.path.abspath(checkpoint))  # noqa: PTH100 - without "..", which is no name, but with links
    parts, taken = path.parts[1:], set(taken)
    n_parts = 1 if step_in_name(path.name) is None else 2
    while (name := "_".join(parts[-n_parts:])) in taken and n_parts < len(parts):
        n_parts += 1
    return name


def distinct_names(checkpoints: Sequence[Path]) -> list[str]:
    """What to call each of several checkpoints: the fewest last parts of its path that no other one has.

    A folder that is named after a step goes with its run's name, as in ``result_name``.

    >>> distinct_names([Path("/a/runs/step-5"), Path("/b/runs/step-5"), Path("/a/llava")])
    ['a_runs_step-5', 'b_runs_step-5', 'llava']
    """
    parts = [path.parts[1:] if path.is_absolute() else path.parts for path in checkpoints]
    lengths = [1 if step_in_name(path.name) is None else 2 for path in checkpoints]
    while True:
        names = ["_".join(own[-n:]) for own, n in zip(parts, lengths, strict=True)]
        counts = Counter(names)
        shared = [counts[name] > 1 and n < len(own) for name, own, n in zip(names, parts, lengths, strict=True)]
        if not any(shared):
            return [str(path) if counts[name] > 1 else name for path, name in zip(checkpoints, names, strict=True)]
        lengths = [n + more for n, more in zip(lengths, shared, strict=True)]


def shown(path: Path) -> Path:
    """A path as people write it: from the working directory if it lies below.

    >>> shown(Path.cwd() / "runs/a"), shown(Path("/elsewhere"))
    (PosixPath('runs/a'), PosixPath('/elsewhere'))
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - without "..", but with links
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def result_folder(checkpoint: Path) -> Path:
    """Where the result of a checkpoint goes if no folder is named."""
    return DEFAULT_OUT / result_name(checkpoint)
