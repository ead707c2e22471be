"""Boards and result files for tests of reports."""

from __future__ import annotations

import math
from pathlib import Path

from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    BoardRow,
    Coefficient,
    Cohort,
    Correlation,
    ScoreEntry,
)
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.records import Comparability, Problem, Run
from mir_plugin.results import LayerDistance, MirConfig, MirResult


def layer(number: int, distance: float = 100.0) -> LayerDistance:
    return LayerDistance(
        layer=number,
        distance=distance,
        distance_published=distance + 1,
        distance_published_upper=distance + 2,
        mean_term=3.0,
        trace_vision=4.0,
        trace_text=5.0,
        trace_term=6.0,
        trace_product=7.0,
        trace_route="cholesky",
        n_vision_tokens=8,
        n_text_tokens=9,
        n_vision_outliers=10,
        n_text_outliers=11,
        scale=0.5,
        mean_norm_vision=12.0,
        mean_norm_text=13.0,
        norm_ratio=0.25,
        mean_cosine=0.125,
        effective_rank_vision=14.0,
        effective_rank_text=15.0,
    )


def save_mir(
    path: Path, checkpoint: str, distance: float, samples: str = "s1", weights: str = "", **changes
) -> MirResult:
    layers = tuple(layer(k, distance) for k in (1, 2))
    result = MirResult(
        checkpoint=checkpoint,
        family="llava-1.5",
        mir=math.log10(2 * distance),
        mir_published=math.log10(2 * distance + 2),
        mir_published_upper=math.log10(2 * distance + 4),
        n_samples=100,
        estimator=changes.pop("estimator", "exact"),
        config=MirConfig(),
        fingerprints={
            "samples": samples,
            "protocol": changes.pop("protocol", "p1"),
            "checkpoint": weights or f"w-{checkpoint}",
            "versions": "v1",
        },
        layers=layers,
        created=changes.pop("created", "2026-11-21T10:00:00+00:00"),
        **changes,
    )
    result.save(path)
    return result


def board(names: tuple[str, ...] = ("alpha", "beta", "gamma"), **changes) -> Board:
    """Rows with known numbers: the first has the lowest MIR, the last lacks MME."""
    by_key = {benchmark.key: benchmark for benchmark in BENCHMARKS}
    rows = tuple(
        BoardRow(
            identity=f"models/{name}",
            name=name,
            cohort="A",
            rank=place,
            mir=2.5 + 0.25 * place,
            mir_published=2.6 + 0.25 * place,
            scores={"mmstar": 40.0 - place, **({"mme": 1500.0 + 10 * place} if place < len(names) else {})},
            average=None if place == len(names) else ((40.0 - place) + (1500.0 + 10 * place) / 20) / 2,
            layers=(layer(1, 10.0 * place), layer(2, 20.0 * place)),
            sources=(f"{name}.json",),
        )
        for place, name in enumerate(names, start=1)
    )
    defaults = {
        "title": "A title",
        "rows": rows,
        "benchmarks": (by_key["mmstar"], by_key["mme"]),
        "weights": {"mmstar": 1.0, "mme": 1.0},
        "cohorts": (Cohort("A", Comparability("exact", "s1", "p1"), len(rows)),),
        "correlations": (
            Correlation("A", AVERAGE, 2, note="n = 2: no correlation below 3 rows"),
            Correlation("A", "mmstar", 3, Coefficient(-0.5, 0.1, -0.9, 0.1, -0.6, -0.4)),
        ),
        "entries": (
            ScoreEntry(names[0], "models/x", "mmstar", 39.0, 0.39, "lmms-eval", "mmstar", "average,none", True, True),
        ),
        "runs": (Run("r1", "lmms-eval", names[0], "r1.json", tasks=("mmstar",), versions={"torch": "2"}),),
        "problems": (Problem("warning", "missing", names[-1], "no average: it lacks MME", "Evaluate it."),),
    }
    return Board(**(defaults | changes))
