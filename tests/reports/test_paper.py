"""The paper's tables: their own averages, and the report of them."""

from __future__ import annotations

import pytest

from mir_plugin.reports.board.joint import join
from mir_plugin.reports.board.paper import (
    TABLES,
    paper_config,
    paper_rows,
    paper_sources,
)
from mir_plugin.reports.read.benchmarks import find_column, weighted_average
from mir_plugin.reports.read.headline_table import BENCHMARKS


@pytest.fixture(scope="module")
def paper():
    return join(paper_sources(), paper_config())


@pytest.mark.parametrize("table", [t for t in TABLES if "Average" in paper_rows(t.file)[0]], ids=lambda t: t.file)
def test_the_average_rule_gives_the_papers_averages(table):
    for row in paper_rows(table.file):
        scores = {
            b.key: float(text) for name, text in row.items() if (b := find_column(name, BENCHMARKS)) and b.averaged
        }
        average = weighted_average(scores, dict.fromkeys(scores, 1.0), BENCHMARKS)
        # Printed with one decimal; one row of table 1 is printed 0.09 lower than its scores give.
        assert average == pytest.approx(float(row["Average"]), abs=0.1)


def test_without_dividing_mme_the_rule_would_be_far_off():
    row = paper_rows("connectors.csv")[0]
    scores = [float(row[name]) for name in row if (b := find_column(name, BENCHMARKS)) and b.averaged]
    assert abs(sum(scores) / len(scores) - float(row["Average"])) > 100


def test_the_two_values_of_one_model_are_pointed_out(paper):
    assert any("3.182" in warning and "3.374" in warning for warning in paper.warnings)


def test_every_row_with_a_mir_is_on_the_board_once(paper):
    expected = sum(len(paper_rows(table.file)) for table in TABLES) + 10  # ten data scales, printed as columns
    assert len(paper.rows) == expected == len({row.identity for row in paper.rows})
    assert all(row.mir is not None for row in paper.rows)


def test_correlations_are_there_per_table_and_pooled(paper):
    scopes = {c.scope for c in paper.correlations if c.benchmark == "average"}
    assert {"A", "A / Table 2: training recipe", "A / Table 4: connector"} <= scopes
    recipe = next(c for c in paper.correlations if c.scope.endswith("recipe") and c.benchmark == "average_stated")
    assert recipe.pearson.value == pytest.approx(-0.968, abs=1e-3)
