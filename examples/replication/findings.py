"""What came out: one row per checkpoint, the rank correlations, and RESULTS.md as they are."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.reports.correlation import correlate

# Indicator → the sign its correlation with the score after fine-tuning has if the indicator is useful.
EXPECTED_SIGNS = {
    "mir_digits": -1,
    "mir_digits_no_trace_term": -1,
    "mir_photographs": -1,
    "norm_ratio": -1,
    "training_loss": -1,
    "caption_loss": -1,
    "score_before": 1,
}


@dataclass(frozen=True)
class Outcome:
    """One pre-trained checkpoint.

    Attributes:
        training_loss: mean of the last ten steps' losses, as a trainer logs them.
        mir_digits: MIR on pictures of held-out digits with the embedded samples' texts.
        mir_digits_no_trace_term: the same distance without its trace term (`mir_published_upper`).
        mir_photographs: MIR on the embedded samples: photographs, which neither tower nor projector was trained on.
        norm_ratio: mean norm of vision over that of text tokens after the first layer.
        caption_loss: nats per true caption of held-out digits.
        score_before, score: share of right answers on held-out digits, before and after fine-tuning.
    """

    seed: int
    run: str
    step: int
    training_loss: float
    mir_digits: float
    mir_digits_no_trace_term: float
    mir_photographs: float
    norm_ratio: float
    caption_loss: float
    score_before: float
    score: float
    seconds: float


def write_results(out: Path, outcomes: Sequence[Outcome]) -> None:
    """results.csv and RESULTS.md in the folder."""
    rows = sorted(outcomes, key=lambda one: (one.seed, one.run, one.step))
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Outcome)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    (out / "RESULTS.md").write_text(results_page(rows), encoding="utf-8")


def results_page(rows: Sequence[Outcome]) -> str:
    """The page: rank correlations of every indicator, then every checkpoint."""
    seeds = sorted({row.seed for row in rows})
    lines = [
        "# Results of the miniature replication",
        "",
        f"{len(rows)} checkpoints before fine-tuning; seeds {', '.join(map(str, seeds))}. Written by `replicate.py`.",
        "Spearman's rho between an indicator before fine-tuning and the score after it; 95 % bootstrap interval over",
        "checkpoints. Checkpoints of one run are not independent, so the intervals are too narrow.",
        "",
        "| indicator | useful if | rho | 95 % interval | p | with the useful sign |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_correlation_line(name, sign, rows) for name, sign in EXPECTED_SIGNS.items()]
    columns = [field.name for field in dataclasses.fields(Outcome) if field.name != "seconds"]
    lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(getattr(row, name)) for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _correlation_line(name: str, sign: int, rows: Sequence[Outcome]) -> str:
    found = correlate(name, "score", [getattr(row, name) for row in rows], [row.score for row in rows])
    wanted = "negative" if sign < 0 else "positive"
    rho = found.spearman
    if rho.value is None or rho.low is None or rho.high is None:
        return f"| {name} | {wanted} | {found.note or 'no interval'} | | | |"
    low, high = sorted((sign * rho.low, sign * rho.high))
    verdict = "yes" if low > 0 else "no, the opposite" if high < 0 else "undecided"
    return (
        f"| {name} | {wanted} | {rho.value:+.2f} | {rho.low:+.2f} to {rho.high:+.2f} | {rho.p_value:.2g} | {verdict} |"
    )


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
