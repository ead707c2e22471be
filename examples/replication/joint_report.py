"""The replication's joint report: MIR, the score that lmms-eval gave after fine-tuning, and the other indicators."""

from __future__ import annotations

from pathlib import Path

from examples.replication.findings import INDICATORS
from examples.replication.outcomes import CheckpointPlan, Outcome, planned
from examples.replication.replicate import Replication
from mir_plugin.files.atomic import write_atomically
from mir_plugin.reports.board.config import ModelEntry, ReportConfig
from mir_plugin.reports.build import ReportFiles, build_report
from mir_plugin.reports.view.indicator_columns import indicator_table, with_indicators
from mir_plugin.results import RESULT_NAME

DIGITS = "mir_digits"


def write_report(replication: Replication, out: Path) -> ReportFiles:
    """Workbook, page, tables and figures below ``out/report``.

    A row is one checkpoint: measured before fine-tuning, scored after it.
    """
    seeds = sorted({one.seed for one in replication.outcomes})
    plans = list(planned(out, replication.recipe, seeds))
    shown = {one.name for one in INDICATORS}
    found = {str(plan.folder): Outcome.load(plan.outcome_path).indicators for plan in plans}
    table = out / "indicators.csv"
    write_atomically(
        table,
        indicator_table({path: {n: v for n, v in row.items() if n in shown} for path, row in found.items()}),
    )
    columns = with_indicators(sorted(shown), {one.name for one in INDICATORS if one.useful_sign > 0})
    config = ReportConfig(
        title="Miniature replication: before and after fine-tuning",
        models=tuple(_entry(plan) for plan in plans),
        benchmarks=tuple(sorted(columns, key=lambda one: one.key != DIGITS)),
        notes=(
            "MIR and indicators were measured before fine-tuning, Digits after it.",
            "Checkpoints of one run are not independent; intervals of correlations over checkpoints are too narrow.",
        ),
    )
    measured = [plan.results_dir / RESULT_NAME for plan in plans]
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
