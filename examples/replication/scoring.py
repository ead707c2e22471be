"""Scores through lmms-eval: its evaluator, its task files and its results files, inside this process."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path

from lmms_eval import evaluator
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager

from mir_plugin.errors import MirError
from mir_plugin.tasks.lmms_eval.hooks import TASKS_DIR

TASK, METRIC = "mir_digits", "exact_match,none"
BATCH = 50


@functools.cache
def _task_manager() -> TaskManager:
    """Of our own task files alone: indexing all of lmms-eval's takes half a minute."""
    return TaskManager(include_defaults=False, include_path=str(TASKS_DIR))


def digits_score(checkpoint: Path, results_dir: Path) -> float:
    """Per cent of right answers in the task `mir_digits`; lmms-eval's results file is left in the folder.

    Raises:
        MirError: if lmms-eval did not write its results.
    """
    tracker = EvaluationTracker(output_path=str(results_dir))
    results = evaluator.simple_evaluate(
        model="mir_llava",
        model_args=f"pretrained={checkpoint},device=cpu,dtype=float32",
        tasks=[TASK],
        task_manager=_task_manager(),
        batch_size=BATCH,
        log_samples=False,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    tracker.save_results_aggregated(results=results, samples=None, datetime_str=now.strftime("%Y%m%d_%H%M%S"))
    if not list(results_dir.rglob("*_results.json")):  # lmms-eval only logs that it could not write
        raise MirError(f"lmms-eval wrote no results below {results_dir}; is the disk full?")
    return 100 * float(results["results"][TASK][METRIC])
