"""CSV, Markdown and LaTeX, and the files of a whole report."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_boards import board, save_mir

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.build import FORMATS, build_report
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.text.tables import to_csv, to_latex, to_markdown
from mir_plugin.reports.view.columns import rounded
from mir_plugin.reports.view.tables import leaderboard_sections

NAMES = st.text(min_size=1, max_size=40) | st.sampled_from(
    ["=1+1", "a|b", "a\nb", "<script>", "\\input{x}", "%", "$&_"]
)


def test_csv_holds_full_precision_and_empty_cells():
    rows = list(csv.DictReader(io.StringIO(to_csv(board()))))
    assert [row["MIR"] for row in rows] == ["2.75", "3.0", "3.25"]
    assert [row["MME"] for row in rows] == ["1510.0", "1520.0", ""]
    assert rows[0]["estimator"] == "exact"


@settings(max_examples=40, deadline=None)
@given(NAMES)
def test_no_name_breaks_the_tables(name):
    named = board(names=(name, "b"))
    rows = list(csv.reader(io.StringIO(to_csv(named))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not rows[1][1].startswith(("=", "+", "-", "@", "\t", "\r"))
    table = [line for line in to_markdown(named).split("\n") if line.startswith("| 1 |")]
    assert len(table) == 1
    assert table[0].replace(r"\|", "").count("|") == to_markdown(named).split("\n")[2].count("|")
    assert "<script>" not in to_markdown(named)
    assert "\\input{" not in to_latex(named)


def test_markdown_prints_the_best_in_bold_and_the_warnings_first():
    text = to_markdown(board(warnings=("do not compare",)))
    assert "**2.750**" in text
    assert "**1520.0**" in text
    assert text.index("do not compare") < text.index("| Rank |")
    assert "estimator exact" in text


def test_latex_has_one_line_per_row_and_names_the_estimator():
    text = to_latex(board())
    assert text.count(r"\\") == 4
    assert r"\textbf{2.750}" in text
    assert "estimator exact" in text


def test_a_report_can_be_made_from_the_csv_of_a_report(tmp_path):
    save_mir(tmp_path / "mir" / "mir.json", "=evil", 100.0)
    (tmp_path / "scores.csv").write_text("checkpoint,MMStar,MME\n=evil,40,1500\n")
    first = build_report([tmp_path / "mir", tmp_path / "scores.csv"], tmp_path / "out", ReportConfig(formats=("csv",)))
    again = join(read_sources([first.paths["csv"]]))
    assert [(r.identity, r.mir, r.average, r.cohort) for r in again.rows] == [
        (r.identity, r.mir, r.average, r.cohort) for r in first.board.rows
    ]
    assert again.cohorts == first.board.cohorts


def test_a_report_writes_every_format(tmp_path):
    save_mir(tmp_path / "mir.json", "/a", 100.0)
    files = build_report([tmp_path / "mir.json"], tmp_path / "out")
    assert set(files.paths) == set(FORMATS)
    assert all(path.stat().st_size > 0 for path in files.paths.values())


def test_sources_with_nothing_to_show_leave_an_earlier_report_as_it_is(tmp_path):
    save_mir(tmp_path / "mir.json", "/a", 100.0)
    build_report([tmp_path / "mir.json"], tmp_path / "out", ReportConfig(formats=("md",)))
    before = (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "notes").mkdir()
    assert build_report([tmp_path / "notes"], tmp_path / "out", ReportConfig(formats=("md", "html"))).paths == {}
    assert (tmp_path / "out" / "report.md").read_text() == before
    assert not (tmp_path / "out" / "report.html").exists()


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(MirError, match="unknown report format 'docx'"):
        build_report([tmp_path / "nowhere"], tmp_path, ReportConfig(formats=("docx",)))


def test_every_format_rounds_a_half_as_spreadsheets_and_browsers_do():
    """Python rounds 57.25 to 57.2 and a spreadsheet to 57.3: two files of one report gave two averages."""
    first, *others = board().rows
    shown = board(rows=(dataclasses.replace(first, average=57.25), *others))
    assert "57.3" in to_markdown(shown)
    assert "57.3" in to_latex(shown)
    assert "57.3" in {
        cell.text for section in leaderboard_sections(shown) for row in section.rows for cell in row.cells
    }
    assert rounded(1e30, 1) == f"{1e30:.1f}"


def test_correlations_name_their_rows_in_words():
    """The one cohort of a report is nowhere else called A."""
    assert "| All checkpoints | Average |" in to_markdown(board())


def test_latex_needs_no_font_encoding_but_the_usual():
    """\\textquotedbl stops a document in LaTeX's default encoding."""
    assert "say ''a'' \\& 5\\%" in to_latex(board(names=('say "a" & 5%', "b", "c")))
