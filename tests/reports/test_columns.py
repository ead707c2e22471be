"""Every declared column reads its own field."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.view import columns as declared


def sentinel(cls: type) -> SimpleNamespace:
    """Each field holds its own name."""
    return SimpleNamespace(**{field.name: field.name for field in dataclasses.fields(cls)})


def values(columns, row) -> dict:
    return {column.heading: column.value(row) for column in columns}


def test_leaderboard_columns():
    row = sentinel(declared.BoardRow)
    row.mir_interval = ("low", "high")
    read = values(
        (*declared.PLACE_COLUMNS, *declared.MIR_COLUMNS, declared.AVERAGE_COLUMN, *declared.ORIGIN_COLUMNS), row
    )
    assert read == {
        "Rank": "rank", "Checkpoint": "name", "Group": "group", "Run": "run", "Step": "step",
        "Scores of": "finetuned", "Cohort": "cohort", "MIR": "mir",
        "MIR SE": "mir_standard_error", "MIR low": "low", "MIR high": "high", "MIR published": "mir_published",
        "MIR published upper": "mir_published_upper", "MIR at equal length": "mir_at_equal_length",
        "Length share": "length_share", "Average": "average", "n samples": "n_samples",
        "Identity": "identity",
    }  # fmt: skip


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.key)
def test_benchmark_columns(benchmark):
    row = SimpleNamespace(scores={b.key: b.key for b in BENCHMARKS})
    assert declared.benchmark_column(benchmark).value(row) == benchmark.key


def test_score_columns():
    row = sentinel(declared.ScoreEntry)
    row.used, row.complete = True, False
    assert values(declared.SCORE_COLUMNS, row) == {
        "Checkpoint": "name", "Benchmark": "benchmark", "Score": "value", "Status": "used, partial", "Host": "host",
        "Task": "task", "Field": "metric", "As written": "raw_value", "Rows": "n_samples", "Date": "date",
        "Source": "run_id",
    }  # fmt: skip


def test_layer_columns():
    row = SimpleNamespace(name="name", cohort="cohort", layer=sentinel(declared.LayerDistance))
    row.layer.length_term = "length_term"  # a property, no field
    assert values((*declared.LAYER_COLUMNS, *declared.LAYER_DETAILS), row) == {
        "Checkpoint": "name", "Layer": "layer", "Distance": "distance", "Mean term": "mean_term",
        "Trace vision": "trace_vision", "Trace text": "trace_text", "Trace term": "trace_term",
        "Norm ratio": "norm_ratio", "Cohort": "cohort", "Distance, published": "distance_published",
        "Norm vision": "mean_norm_vision", "Norm text": "mean_norm_text", "Cosine of means": "mean_cosine",
        "Effective rank vision": "effective_rank_vision", "Effective rank text": "effective_rank_text",
        "Vision tokens": "n_vision_tokens", "Text tokens": "n_text_tokens", "Vision outliers": "n_vision_outliers",
        "Text outliers": "n_text_outliers", "Length term": "length_term", "Longest vision": "longest_vision",
        "Longest text": "longest_text",
    }  # fmt: skip


def test_run_columns():
    row = sentinel(declared.Run)
    row.complete, row.tasks, row.versions = True, ("a", "b"), {"torch": "2"}
    row.fingerprints = {name: name for name in ("samples", "protocol", "checkpoint")}
    assert values(declared.RUN_COLUMNS, row) == {
        "Checkpoint": "checkpoint", "Host": "host", "Date": "date", "Extent": "complete", "Tasks": "a, b",
        "Samples": "samples", "Protocol": "protocol", "Weights": "checkpoint", "Versions": "torch 2",
        "Source": "source",
    }  # fmt: skip


def test_problem_columns():
    assert values(declared.PROBLEM_COLUMNS, sentinel(declared.Problem)) == {
        "Severity": "severity", "Kind": "kind", "Where": "where", "What": "what", "What to do": "remedy",
    }  # fmt: skip


def test_correlation_columns():
    def coefficient(name):
        fields = dataclasses.fields(declared.Coefficient)
        return SimpleNamespace(**{field.name: f"{name}.{field.name}" for field in fields})

    row = SimpleNamespace(scope="scope", benchmark="mmstar", n="n", note="note")
    row.pearson, row.spearman, row.kendall = map(coefficient, ("pearson", "spearman", "kendall"))
    board = SimpleNamespace(benchmarks=(SimpleNamespace(key="mmstar", name="MMStar"),), cohorts=())
    read = values(declared.correlation_columns(board), row)
    for name, symbol in (("Pearson", "r"), ("Spearman", "ρ"), ("Kendall", "τ")):
        own = name.lower()
        assert read[f"{name} {symbol}"] == f"{own}.value"
        assert read[f"p of {symbol}"] == f"{own}.p_value"
        assert read[f"{symbol} 95 % low"] == f"{own}.low"
        assert read[f"{symbol} 95 % high"] == f"{own}.high"
        assert read[f"{symbol} LOO low"] == f"{own}.leave_one_out_low"
        assert read[f"{symbol} LOO high"] == f"{own}.leave_one_out_high"
    assert (read["Rows"], read["MIR against"], read["n"], read["Note"]) == ("scope", "MMStar", "n", "note")
