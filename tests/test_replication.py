from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "replication"


@pytest.fixture(scope="module")
def findings():
    sys.path.insert(0, str(EXAMPLE))
    try:
        import findings as module

        yield module
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("findings", None)


def rows(findings, scores, **columns):
    """One checkpoint per score; a column that is not given is constant."""
    plain = dict.fromkeys(findings.EXPECTED_SIGNS, 1.0) | {"seed": 0, "run": "steps", "seconds": 0.0}
    return [
        findings.Outcome(**plain | {name: values[i] for name, values in columns.items()} | {"step": i, "score": score})
        for i, score in enumerate(scores)
    ]


def line_of(page: str, indicator: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")] for line in page.splitlines() if f"| {indicator} |" in line)


def test_an_indicator_that_orders_the_scores_backwards_is_called_the_opposite(findings):
    up = [0.1 * step for step in range(12)]
    down = up[::-1]
    page = findings.results_page(rows(findings, up, mir_digits=down, mir_photographs=up, score_before=up))
    assert line_of(page, "mir_digits")[3::3] == ["-1.00", "yes"]
    assert line_of(page, "mir_photographs")[3::3] == ["+1.00", "no, the opposite"]
    assert line_of(page, "score_before")[3::3] == ["+1.00", "yes"]


def test_an_indicator_without_relation_is_undecided_and_a_constant_one_has_no_correlation(findings):
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    page = findings.results_page(rows(findings, scores, caption_loss=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    assert line_of(page, "caption_loss")[-2] == "undecided"
    assert "no correlation exists" in line_of(page, "mir_digits")[3]


def test_every_checkpoint_is_listed_and_written_as_a_table(findings, tmp_path):
    findings.write_results(tmp_path, rows(findings, [0.25, 0.5, 0.75]))
    assert [line.split(",")[-2] for line in (tmp_path / "results.csv").read_text().splitlines()[1:]] == [
        "0.25",
        "0.5",
        "0.75",
    ]
    page = (tmp_path / "RESULTS.md").read_text()
    assert [score in page for score in ("0.250", "0.500", "0.750")] == [True] * 3
