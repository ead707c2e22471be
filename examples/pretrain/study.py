"""Tables of the study from what its trainings wrote: ``python examples/pretrain/study.py FOLDER``, for RESULTS.md.

FOLDER has ``runs/NAME/mir/checkpoint-STEP/mir.json`` and ``runs/NAME/checkpoint-STEP/trainer_state.json``, as
pretrain.py writes them; where it was measured again ``sweep*/NAME_checkpoint-STEP/mir.json``, as `mir sweep` does; and
for the tuned checkpoints ``sweep/sweep.json`` with indicators and lmms-eval's ``eval/NAME_checkpoint-STEP``.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from mir_plugin import MirResult

COLUMNS = (
    "step", "loss", "MIR", "±", "early", "middle", "late", "length share", "at equal length", "norm v/t at layer 1",
    "rank of vision tokens", "fragile",
)  # fmt: skip


Row = dict[str, float | str]
KINDS = ("acc", "which_name", "which_group", "yes_or_no")


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


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_run(run: Path) -> str:
    """Heading and table of one training."""
    results, losses = steps_of(run), losses_of(run)
    rows = [row(step, losses.get(step), MirResult.load(path)) for step, path in results.items()]
    end = "" if (run / "done").exists() else ", not finished"
    return f"### {run.name}{end}\n\n{table(COLUMNS, rows)}\n"


def sweep_tables(folder: Path) -> Iterator[str]:
    """The checkpoints that were measured again after training, run by run."""
    found: dict[str, dict[int, MirResult]] = {}
    for path in folder.glob("sweep*/*/mir.json"):
        if name := re.fullmatch(r"(.+)_checkpoint-(\d+)", path.parent.name):
            found.setdefault(name[1], {})[int(name[2])] = MirResult.load(path)
    for run, results in sorted(found.items()):
        losses = losses_of(folder / "runs" / run)
        rows = [row(step, losses.get(step), result) for step, result in sorted(results.items())]
        yield f"### {run}, measured again\n\n{table(COLUMNS, rows)}\n"


def tuned(folder: Path) -> list[Row]:
    """For each tuned checkpoint its run, its score, and what was known of it before."""
    listed = folder / "sweep/sweep.json"
    found: list[Row] = []
    for one in json.loads(listed.read_text(encoding="utf-8"))["checkpoints"] if listed.exists() else []:
        written = sorted((folder / "eval" / one["name"]).rglob("*_results.json"))
        if not written or one["result"] is None:
            continue
        scores = json.loads(written[-1].read_text(encoding="utf-8"))["results"]["drawings"]
        kinds = {kind: scores[f"{kind},none"] for kind in KINDS}
        before = {key: one[key] for key in ("mir", "mir_at_equal_length", "length_share", "mir_published")}
        before |= dict(
            zip(("early", "middle", "late"), thirds(MirResult.load(listed.parent / one["result"])), strict=True)
        )
        loss = losses_of(folder / "runs" / one["run"]).get(one["step"])
        before |= {"held-out caption loss": loss, "step": one["step"], **one["indicators"]}
        known = {name: value for name, value in before.items() if value is not None}
        found.append({"name": one["name"], "run": one["run"], **kinds, **known})
    return found


def rho_by_runs(rows: Sequence[Row], name: str, n_resamples: int = 2000) -> tuple[float, ...]:
    """Spearman's correlation of an indicator with the score, and its 95 % interval by a bootstrap over runs."""
    known = [row for row in rows if name in row]
    by_run: dict[str, list[tuple[float, float]]] = {}
    for row in known:
        by_run.setdefault(str(row["run"]), []).append((float(row[name]), float(row["acc"])))
    chance, runs = random.Random(0), list(by_run.values())
    drawn = [[pair for run in chance.choices(runs, k=len(runs)) for pair in run] for _ in range(n_resamples)]
    values = sorted(_rho(pairs) for pairs in drawn if len({x for x, _ in pairs}) > 2 and len({y for _, y in pairs}) > 2)
    low, high = values[int(0.025 * len(values))], values[int(0.975 * len(values))]
    return _rho([pair for run in runs for pair in run]), low, high


def _rho(pairs: Sequence[tuple[float, float]]) -> float:
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def scores(rows: Sequence[Row]) -> str:
    """Table of the scores, and of the correlations with them."""
    ordered = sorted(rows, key=lambda row: float(row["mir"]))
    cells = [[str(row["name"]), *(f"{row[name]:.3f}" for name in ("mir", *KINDS))] for row in ordered]
    text = f"### Scores after tuning\n\n{table(('checkpoint', 'MIR before', *KINDS), cells)}\n"
    n_runs = len({row["run"] for row in rows})
    if len(rows) < 4 or n_runs < 3:
        return text
    names = dict.fromkeys(name for row in rows for name in row if name not in ("name", "run", *KINDS))
    cells = [[name, "{:+.2f}".format(*rho), "{1:+.2f} … {2:+.2f}".format(*rho)] for name, rho in _rhos(rows, names)]
    heading = f"### Correlation with the score, {len(rows)} checkpoints of {n_runs} runs"
    return f"{text}\n{heading}\n\n{table(('before tuning', 'ρ', '95 % interval'), cells)}\n"


def _rhos(rows: Sequence[Row], names: Iterable[str]) -> Iterator[tuple[str, tuple[float, ...]]]:
    return ((name, rho_by_runs(rows, name)) for name in names)


def main(folder: Path) -> None:
    """Print all tables."""
    for run in sorted((folder / "runs").iterdir()):
        print(of_run(run))
    for text in sweep_tables(folder):
        print(text)
    if rows := tuned(folder):
        print(scores(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
