"""The replication's joint report: MIR, the score that lmms-eval gave after fine-tuning, and the other indicators."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mir_plugin.output import write_atomically
from mir_plugin.replication.findings import INDICATORS
from mir_plugin.replication.outcomes import CheckpointPlan, Outcome, planned
from mir_plugin.replication.replicate import Replication
from mir_plugin.reports.benchmarks import BENCHMARKS, TRAINING_LOSS, Benchmark
from mir_plugin.reports.build import ReportFiles, build_report
from mir_plugin.reports.config import ModelEntry, ReportConfig

DIGITS = "mir_digits"
IN_MIR_JSON = {"mir", "mir_published", "mir_published_upper"}
KNOWN_TO_REPORTS = {"training_loss": TRAINING_LOSS}


def write_report(replication: Replication, out: Path) -> ReportFiles:
    """Workbook, page, tables and figures below ``out/report``.

    A row is one checkpoint: measured before fine-tuning, scored after it.
    """
    seeds = sorted({one.seed for one in replication.outcomes})
    plans = list(planned(out, replication.recipe, seeds))
    table = out / "indicators.csv"
    write_atomically(table, _indicator_table(plans))
    known = [one for one in BENCHMARKS if one.key in {DIGITS, *KNOWN_TO_REPORTS.values()}]
    others = [
        Benchmark(name, name, columns=(name,), unit="points", higher_is_better=sign > 0, averaged=False, decimals=3)
        for name, sign in _tabled().items()
        if name not in KNOWN_TO_REPORTS
    ]
    config = ReportConfig(
        title="Miniature replication: before and after fine-tuning",
        models=tuple(_entry(plan) for plan in plans),
        benchmarks=(*sorted(known, key=lambda one: one.key != DIGITS), *others),
        notes=(
            "MIR and indicators were measured before fine-tuning, Digits after it.",
            "Checkpoints of one run are not independent; intervals of correlations over checkpoints are too narrow.",
        ),
    )
    measured = [plan.results_dir / "mir.json" for plan in plans]
    scored = [path for plan in plans for path in sorted((plan.results_dir / "after").rglob("*_results.json"))]
    return build_report([*measured, *scored, table], out / "report", config)


def _entry(plan: CheckpointPlan) -> ModelEntry:
    name = plan.pre_training.name
    return ModelEntry(
        match=(str(plan.folder), str(plan.tuned_folder)),
        name=f"{name}, step {plan.step}, seed {plan.seed}",
        group=name,
        step=plan.step,
    )


def _tabled() -> dict[str, int]:
    """Indicators that reports have from nowhere else, and the sign that is useful."""
    return {one.name: one.useful_sign for one in INDICATORS if one.name not in IN_MIR_JSON}


def _indicator_table(plans: Sequence[CheckpointPlan]) -> str:
    """One row per checkpoint, by its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["checkpoint", *(KNOWN_TO_REPORTS.get(name, name) for name in _tabled())])
    for plan in plans:
        found = Outcome.load(plan.outcome_path).indicators
        writer.writerow([plan.folder, *(found.get(name, "") for name in _tabled())])
    return text.getvalue()
