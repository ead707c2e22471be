"""The numbers behind the page's charts, as plain data for its script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    BoardRow,
    Coefficient,
    Correlation,
)
from mir_plugin.reports.board.fit import Line
from mir_plugin.reports.view.columns import COEFFICIENTS, MAX_DETAILED_ROWS, P_VALUE
from mir_plugin.reports.view.series import (
    LAYER_METRICS,
    main_column,
    main_scope,
    scatter,
    scopes,
    score_columns,
)
from mir_plugin.reports.view.tables import display, interval
from mir_plugin.reports.view.training import training_quantities, training_runs
from mir_plugin.results import LayerDistance

FEW_METRICS = 4  # a page of hundreds of checkpoints stays quick to open


def chart_data(board: Board) -> dict[str, Any]:
    """Rows in the board's order; scopes, score columns and layer metrics to choose from; lines and coefficients."""
    columns = score_columns(board)
    n_layer_rows = sum(len(row.layers) for row in board.rows)
    metrics = LAYER_METRICS if n_layer_rows <= MAX_DETAILED_ROWS else LAYER_METRICS[:FEW_METRICS]
    places = {id(row): index for index, row in enumerate(board.rows)}
    higher = {benchmark.key: benchmark.higher_is_better for benchmark in board.benchmarks} | {AVERAGE: True}
    decimals = {benchmark.key: benchmark.decimals for benchmark in board.benchmarks} | {AVERAGE: 1}
    correlations = {(c.scope, c.benchmark): c for c in board.correlations}
    return {
        "rows": [_row(row, [metric.value for metric in metrics]) for row in board.rows],
        "columns": [
            {"key": key, "label": storable(label), "higherIsBetter": higher[key], "places": decimals[key]}
            for key, label in columns
        ],
        "mainColumn": main_column(board),
        "mainScope": scope.key if (scope := main_scope(board)) else None,
        "metrics": [{"key": metric.key, "label": metric.label} for metric in metrics],
        "scopes": [
            {
                "key": storable(scope.key),
                "label": storable(scope.label),
                "rows": [places[id(row)] for row in scope.rows],
                "lines": {key: _line(line) for key, _ in columns if (line := scatter(scope, key).line) is not None},
                "statistics": {
                    key: _statistics(correlations[scope.key, key])
                    for key, _ in columns
                    if (scope.key, key) in correlations
                },
            }
            for scope in scopes(board)
        ],
        "training": _training(board, places),
    }


def _training(board: Board, places: Mapping[int, int]) -> dict[str, Any]:
    """Runs as places of their rows, by step; and the quantities to plot along them."""
    runs = training_runs(board)
    return {
        "runs": [{"label": storable(run.label), "rows": [places[id(row)] for row in run.rows]} for run in runs],
        "quantities": [{"key": key, "label": storable(label)} for key, label in training_quantities(board, runs)],
    }


def as_script_data(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens a comment.

    >>> as_script_data("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only, so U+2028 is escaped as well
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _row(row: BoardRow, metrics: list[Any]) -> dict[str, Any]:
    scores = dict(row.scores) if row.average is None else {AVERAGE: row.average, **row.scores}
    return {
        "name": storable(row.name),
        "group": storable(row.series),
        "cohort": row.cohort,
        "identity": storable(row.identity),
        "step": row.step,
        "rank": row.rank,
        "mir": row.mir,
        "interval": row.mir_interval,
        "scores": scores,
        "layers": [_curve(row.layers, metric) for metric in metrics] if row.layers else [],
    }


def _curve(layers: tuple[LayerDistance, ...], metric: Any) -> list[float | None]:
    """Five digits: more than a chart can show, and half the size."""
    values = [metric(layer) for layer in layers]
    return [None if value is None else float(f"{value:.5g}") for value in values]


def _line(line: Line) -> dict[str, float]:
    return {
        "slope": line.slope,
        "intercept": line.intercept,
        "low": line.x_low,
        "high": line.x_high,
        "mean": line.x_mean,
        "spread": line.x_spread,
        "n": line.n,
        "margin": line.margin,
    }


def _statistics(correlation: Correlation) -> dict[str, Any]:
    return {
        "n": correlation.n,
        "note": correlation.note,
        "coefficients": [
            _coefficient(f"{name} {symbol}", coefficient)
            for name, symbol, pick in COEFFICIENTS
            if (coefficient := pick(correlation)).value is not None
        ],
    }


def _coefficient(name: str, coefficient: Coefficient) -> dict[str, str]:
    return {
        "name": name,
        "value": display(coefficient.value, "0.00"),
        "interval": interval(coefficient.low, coefficient.high, "0.00"),
        "p": display(coefficient.p_value, P_VALUE),
        "leftOut": interval(coefficient.leave_one_out_low, coefficient.leave_one_out_high, "0.00"),
    }
