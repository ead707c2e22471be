"""Tables of the study from what its trainings wrote: ``python examples/pretrain/study.py FOLDER``, for RESULTS.md.

FOLDER has ``runs/NAME/mir/checkpoint-STEP/mir.json`` and ``runs/NAME/checkpoint-STEP/trainer_state.json``, as
pretrain.py writes them, and where it was measured again ``sweep*/NAME_checkpoint-STEP/mir.json``, as `mir sweep` does.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mir_plugin import MirResult

COLUMNS = (
    "step", "loss", "MIR", "±", "early", "middle", "late", "length share", "at equal length", "norm v/t at layer 1",
    "rank of vision tokens", "fragile",
)  # fmt: skip


def steps_of(run: Path) -> dict[int, Path]:
    """Results of a run by step."""
    found = {int(path.parent.name.split("-")[-1]): path for path in run.glob("mir/checkpoint-*/mir.json")}
    return dict(sorted(found.items()))


def losses_of(run: Path) -> dict[int, float]:
    """Loss of the held-out captions by step, as the last checkpoint knows them."""
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[-1]))
    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"] if states else []
    return {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}


def thirds(result: MirResult) -> list[float]:
    """MIR of the early, the middle and the late third of the layers."""
    distances = [layer.distance for layer in result.layers]
    n = len(distances) // 3
    return [math.log10(math.fsum(part)) for part in (distances[:n], distances[n:-n], distances[-n:])]


def row(step: int, loss: float | None, result: MirResult) -> list[str]:
    """A row of a run's table; what is not known is a dash."""
    first = result.layers[0]
    share, equal = result.length_share, result.mir_at_equal_length
    return [
        str(step),
        "–" if loss is None else f"{loss:.3f}",
        f"{result.mir:.3f}",
        f"{result.uncertainty['standard_error']:.3f}",
        *(f"{part:.3f}" for part in thirds(result)),
        "–" if share is None else f"{share:.0%}",
        "–" if equal is None else f"{equal:.3f}",
        f"{first.norm_ratio:.2f}",
        f"{first.effective_rank_vision:.1f}",
        "yes" if result.fragile else "",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_run(run: Path) -> str:
    """Heading and table of one training."""
    results, losses = steps_of(run), losses_of(run)
    rows = [row(step, losses.get(step), MirResult.load(path)) for step, path in results.items()]
    end = "" if (run / "done").exists() else ", not finished"
    return f"### {run.name}{end}\n\n{table(rows)}\n"


def sweep_tables(folder: Path) -> Iterator[str]:
    """The checkpoints that were measured again after training, run by run."""
    found: dict[str, dict[int, MirResult]] = {}
    for path in folder.glob("sweep*/*/mir.json"):
        if name := re.fullmatch(r"(.+)_checkpoint-(\d+)", path.parent.name):
            found.setdefault(name[1], {})[int(name[2])] = MirResult.load(path)
    for run, results in sorted(found.items()):
        losses = losses_of(folder / "runs" / run)
        rows = [row(step, losses.get(step), result) for step, result in sorted(results.items())]
        yield f"### {run}, measured again\n\n{table(rows)}\n"


def main(folder: Path) -> None:
    """Print all tables."""
    for run in sorted((folder / "runs").iterdir()):
        print(of_run(run))
    for text in sweep_tables(folder):
        print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
