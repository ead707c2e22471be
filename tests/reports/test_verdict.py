"""The verdict of a sweep among the sources: told first, in every format, as the sweep told it."""

from __future__ import annotations

import json

import openpyxl
import pytest
from report_boards import save_mir

from mir_plugin.reports.board.joint import join
from mir_plugin.reports.page.page import render_page
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.text.tables import to_latex, to_markdown
from mir_plugin.reports.workbook.workbook import write_workbook

SENTENCE = "Fine-tune step 200 of run a: its MIR is lowest, & nothing is tied."


def ranked(name, run, step, mir, behind=None, tied=None):
    span = {"standard_error": 0.01, "low": (behind or 0) - 0.02, "high": (behind or 0) + 0.02}
    difference = None if behind is None else {"a": 1.0, "b": 1.0, "difference": behind, **span}
    facts = {"name": name, "run": run, "step": step, "checkpoint": f"{run}/checkpoint-{step}"}
    return {
        **facts,
        "mir": mir,
        "standard_error": 0.01,
        "behind_best": difference,
        "tied_with_best": tied,
        "within_tolerance": tied,
    }


@pytest.fixture
def folder(tmp_path):
    ranking = [
        ranked("a_checkpoint-200", "runs/a", 200, 1.0),
        ranked("b_checkpoint-200", "runs/b", 200, 1.005, 0.005, True),
        ranked("a_checkpoint-100", "runs/a", 100, 1.3, 0.3, False),
    ]
    selection = {
        "outcome": "clear",
        "recommended": ranking[0],
        "sentence": SENTENCE,
        "reasons": ["The others are worse."],
        "warnings": [],
        "confidence": 0.95,
        "tolerance": 0.01,
        "ranking": ranking,
        "runs": [{"run": "runs/a", "trend": "saturated", "saturated_at": ranking[0]}],
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"schema_version": 1, "checkpoints": [], "selection": selection}))
    for run, step, distance in (("a", 100, 10.0), ("a", 200, 5.0), ("b", 200, 5.1)):
        save_mir(tmp_path / f"{run}_checkpoint-{step}" / "mir.json", f"runs/{run}/checkpoint-{step}", distance)
    return tmp_path


def test_the_verdict_is_read_as_the_sweep_wrote_it(folder):
    (verdict,) = join(read_sources([folder])).verdicts
    assert (verdict.sentence, verdict.recommended) == (SENTENCE, "a_checkpoint-200")
    assert [row.standing for row in verdict.rows] == ["best", "within 0.01", "worse"]
    assert [(run.run, run.best.name, run.saturated_at) for run in verdict.runs] == [
        ("runs/a", "a_checkpoint-200", "a_checkpoint-200"),
        ("runs/b", "b_checkpoint-200", ""),
    ]


def test_a_sweeps_report_has_no_warning_for_scores_that_nobody_asked_for(folder):
    board = join(read_sources([folder]))
    assert board.problems == ()
    assert [(row.name, row.run) for row in board.rows] == [
        ("a_checkpoint-200", "a"),
        ("b_checkpoint-200", "b"),
        ("a_checkpoint-100", "a"),
    ]


def test_every_format_opens_with_it(folder):
    board = join(read_sources([folder]))
    page = render_page(board)
    told = SENTENCE.replace("&", "&amp;")
    assert page.index(told) < page.index('id="leaderboard"')
    assert page.index('id="training-section"') < page.index('id="leaderboard"')  # there is nothing to scatter
    assert to_markdown(board).index(told) < to_markdown(board).index("## Leaderboard")
    assert to_latex(board).startswith(SENTENCE.replace("&", r"\&"))
    book = openpyxl.load_workbook(write_workbook(board, folder / "r.xlsx"))
    assert book.sheetnames[:2] == ["Verdict", "Leaderboard"]
    cells = [[cell for cell in row if cell is not None] for row in book["Verdict"].iter_rows(values_only=True)]
    assert cells[0] == [SENTENCE]
    assert [1.005, 0.005, pytest.approx(-0.015), pytest.approx(0.025), "within 0.01"] in [row[3:] for row in cells]


@pytest.mark.parametrize("text", ["{", "[]", '{"selection": {"ranking": []}}', '{"selection": 3}'])
def test_a_damaged_sweep_is_one_problem(folder, text):
    (folder / "sweep.json").write_text(text)
    (problem,) = read_sources([folder]).problems
    assert problem.where.endswith("sweep.json")


def test_a_sweep_without_a_verdict_says_why(folder):
    (folder / "sweep.json").write_text(json.dumps({"selection": None, "selection_impossible": "protocols differ"}))
    assert any("protocols differ" in problem.what for problem in read_sources([folder]).problems)
    (folder / "sweep.json").write_text(json.dumps({"selection": None}))
    assert read_sources([folder]).problems == ()
