"""The workbook, read back cell by cell."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from xml.etree import ElementTree
from zipfile import ZipFile

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_boards import board

from mir_plugin.files.outside_text import starts_a_formula
from mir_plugin.reports.board.board import Cohort
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.board.paper import paper_config, paper_sources
from mir_plugin.reports.read.records import Comparability
from mir_plugin.reports.view.columns import layer_columns, layer_rows
from mir_plugin.reports.workbook.leaderboard import layout
from mir_plugin.reports.workbook.workbook import write_workbook

from tolerances import HANGS

pytestmark = pytest.mark.slow
CHART = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return openpyxl.load_workbook(write_workbook(board(), tmp_path_factory.mktemp("book") / "report.xlsx"))


def by_heading(sheet, header_row: int, row: int) -> dict:
    headings = [cell.value for cell in sheet[header_row] if cell.value]
    return dict(zip(headings, [cell.value for cell in sheet[row]], strict=False))


def test_the_sheets_are_there_in_reading_order(book):
    assert book.sheetnames == ["Leaderboard", "Scores", "Correlation", "Layers", "Runs", "Problems"]


def test_the_leaderboard_holds_every_value_of_every_row(book):
    plan = layout(board())
    for number, row in enumerate(board().rows, start=plan.first_row):
        cells = by_heading(book["Leaderboard"], plan.header_row, number)
        assert cells["Rank"] == row.rank
        assert cells["Checkpoint"] == row.name
        assert cells["MIR"] == row.mir
        assert cells["MIR published"] == row.mir_published
        assert cells["MMStar"] == row.scores["mmstar"]
        assert cells["MME"] == row.scores.get("mme")  # an empty cell is None, never 0
        assert cells["Identity"] == row.identity


def test_the_best_values_are_bold_and_the_others_are_not(book):
    plan = layout(board())
    sheet = book["Leaderboard"]
    bold = {
        heading: [sheet[f"{plan.letter(heading)}{r}"].font.bold for r in range(plan.first_row, plan.first_row + 3)]
        for heading in ("MIR", "MMStar", "MME")
    }
    assert bold == {"MIR": [True, False, False], "MMStar": [True, False, False], "MME": [False, True, False]}


def test_the_header_is_frozen_filtered_and_coloured(book):
    plan, sheet = layout(board()), book["Leaderboard"]
    assert sheet.freeze_panes == f"{chr(ord(plan.letter('Checkpoint')) + 1)}{plan.first_row}"
    assert sheet.auto_filter.ref == f"A{plan.header_row}:{plan.letter('Identity')}{plan.header_row + 3}"
    coloured = {str(area.sqref) for area in sheet.conditional_formatting}
    assert f"{plan.letter('MIR')}{plan.first_row}:{plan.letter('MIR')}{plan.first_row + 2}" in coloured


def test_numbers_have_formats(book):
    plan, sheet = layout(board()), book["Leaderboard"]
    assert sheet[f"{plan.letter('MIR')}{plan.first_row}"].number_format == "0.000"
    assert sheet[f"{plan.letter('MMStar')}{plan.first_row}"].number_format == "0.0"


def test_weights_and_factors_stand_above_their_columns(book):
    plan, sheet = layout(board()), book["Leaderboard"]
    mmstar, mme = plan.letter("MMStar"), plan.letter("MME")
    assert [sheet[f"{letter}{plan.weight_row}"].value for letter in (mmstar, mme)] == [1, 1]
    assert [sheet[f"{letter}{plan.factor_row}"].value for letter in (mmstar, mme)] == [1, 0.05]


def test_one_checkpoint_is_not_called_checkpoints(tmp_path):
    sheet = openpyxl.load_workbook(write_workbook(board(names=("only",), correlations=()), tmp_path / "r.xlsx")).active
    assert sheet["A2"].value.startswith("1 checkpoint, ")


def test_warnings_are_on_the_leaderboard(tmp_path):
    path = write_workbook(board(warnings=("do not compare",)), tmp_path / "r.xlsx")
    sheet = openpyxl.load_workbook(path)["Leaderboard"]
    assert any(cell.value == "⚠ do not compare" for row in sheet["A1:A8"] for cell in row)


def test_correlations_and_problems_and_runs_and_scores_are_read_back(book):
    correlation = book["Correlation"]
    header = next(row[0].row for row in correlation.iter_rows(max_col=1) if row[0].value == "Rows")
    cells = by_heading(correlation, header, header + 2)
    assert (cells["n"], cells["Pearson r"], cells["p of r"], cells["r LOO high"]) == (3, -0.5, 0.1, -0.4)
    assert cells["Spearman ρ"] is None
    assert by_heading(correlation, header, header + 1)["Note"].startswith("n = 2")
    assert [cell.value for cell in book["Problems"][2]][:3] == ["warning", "missing", "gamma"]
    assert by_heading(book["Runs"], 1, 2)["Versions"] == "torch 2"
    scores = by_heading(book["Scores"], 1, 2)
    assert (scores["Score"], scores["As written"], scores["Field"], scores["Status"]) == (
        39,
        0.39,
        "average,none",
        "used",
    )


def test_correlations_without_notes_have_no_column_for_them(tmp_path):
    without = tuple(one for one in board().correlations if not one.note)
    path = write_workbook(board(correlations=without), tmp_path / "r.xlsx")
    shown = {cell.value for row in openpyxl.load_workbook(path)["Correlation"].iter_rows() for cell in row}
    assert "Pearson r" in shown
    assert "Note" not in shown


def test_every_layer_is_read_back(book):
    sheet = book["Layers"]
    header = next(row[0].row for row in sheet.iter_rows(max_col=1) if row[0].value == "Checkpoint")
    rows = layer_rows(board())
    columns = layer_columns(rows)
    for number, row in enumerate(rows, start=header + 1):
        assert [sheet.cell(number, i).value for i in range(1, len(columns) + 1)] == [c.value(row) for c in columns]


def chart_of(path, sheet: str) -> ElementTree.Element:
    """The XML of the only chart of a sheet."""
    with ZipFile(path) as archive:
        charts = [ElementTree.fromstring(archive.read(n)) for n in archive.namelist() if n.startswith("xl/charts/")]
    (chart,) = (chart for chart in charts if any(sheet in (f.text or "") for f in chart.iter(f"{CHART}f")))
    return chart


def test_charts_refer_to_cells_that_hold_the_numbers(tmp_path):
    path = write_workbook(board(), tmp_path / "r.xlsx")
    scatter, lines = chart_of(path, "Correlation"), chart_of(path, "Layers")
    assert [float(v.text) for v in scatter.find(f".//{CHART}yVal").iter(f"{CHART}v")] == [39.0, 38.0, 37.0]
    names = [v.text for tx in lines.iter(f"{CHART}tx") for v in tx.iter(f"{CHART}v")]
    assert names == ["alpha", "beta", "gamma"]
    sheet = openpyxl.load_workbook(path)["Layers"]
    for series, row in zip(lines.iter(f"{CHART}ser"), board().rows, strict=True):
        first, last = series.find(f"{CHART}val/{CHART}numRef/{CHART}f").text.split("!")[1].replace("$", "").split(":")
        assert [cell.value for (cell,) in sheet[first:last]] == [layer.distance for layer in row.layers]


def test_the_chart_of_the_average_holds_points_that_lie_close_together(tmp_path):
    rows = [
        dataclasses.replace(row, mir=2.51 + place / 100, average=50.0 + place / 50)
        for place, row in enumerate(board().rows)
    ]
    chart = chart_of(write_workbook(board(rows=tuple(rows)), tmp_path / "r.xlsx"), "Correlation")
    limits = [
        (float(scaling.find(f"{CHART}min").get("val")), float(scaling.find(f"{CHART}max").get("val")))
        for scaling in chart.iter(f"{CHART}scaling")
    ]
    for (smallest, largest), low, high in zip(limits, (2.51, 50.0), (2.53, 50.04), strict=True):
        assert smallest < low < high < largest
        assert largest - smallest < 2 * (high - low)


def test_the_chart_over_layers_compares_no_cohorts(tmp_path):
    first, second, third = board().rows
    other = Cohort("B", Comparability("exact", "s2", "p1"), 1)
    mixed = board(rows=(first, second, dataclasses.replace(third, cohort="B")), cohorts=(*board().cohorts, other))
    lines = chart_of(write_workbook(mixed, tmp_path / "r.xlsx"), "Layers")
    assert len(list(lines.iter(f"{CHART}ser"))) == 2
    assert "of cohort A" in "".join(t.text for t in lines.iter(f"{DRAWING}t"))


def test_a_board_without_anything_still_opens(tmp_path):
    empty = board(
        names=("only",),
        rows=(),
        benchmarks=(),
        weights={},
        cohorts=(),
        correlations=(),
        entries=(),
        runs=(),
        problems=(),
    )
    assert openpyxl.load_workbook(write_workbook(empty, tmp_path / "r.xlsx"))["Problems"]["A2"].value == "none"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(min_size=1, max_size=30) | st.sampled_from(["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\t=1"])
)
def test_no_name_becomes_a_formula_or_breaks_the_file(tmp_path, name):
    sheet = openpyxl.load_workbook(write_workbook(board(names=(name, "b")), tmp_path / "r.xlsx"))["Leaderboard"]
    plan = layout(board(names=(name, "b")))
    cell = sheet[f"{plan.letter('Checkpoint')}{plan.first_row}"]
    assert cell.data_type != "f"
    assert bool(cell.quotePrefix) == starts_a_formula(name) or cell.value is None


def test_formulas_come_with_the_value_that_they_have_so_previews_and_pandas_show_it(tmp_path):
    path = write_workbook(board(), tmp_path / "report.xlsx")
    plan = layout(board())
    values = openpyxl.load_workbook(path, data_only=True)
    cells = [values["Leaderboard"][f"{plan.letter('Average')}{plan.first_row + n}"].value for n in range(3)]
    assert cells == [row.average or None for row in board().rows]
    header = next(row for row in values["Correlation"].iter_rows() if row[0].value == "Rows")
    charted = next(cell for cell in header if cell.value == "Charted")
    first = [charted.offset(1, right).value for right in range(4)]
    row = board().rows[0]
    assert first == [row.name, row.cohort, row.mir, row.scores["mmstar"]]  # too few have an average


def test_an_average_that_a_changed_weight_empties_leaves_the_chart(book):
    formulas = [cell.value for row in book["Correlation"].iter_rows() for cell in row if cell.data_type == "f"]
    assert any(formula.startswith("=IF(Leaderboard!") and "NA()" in formula for formula in formulas)


def test_every_kind_of_cell_is_read_back_as_it_was_written(tmp_path):
    texts = [
        "a & b < c > d",
        "  spaces  ",
        "two\nlines",
        'quoted "x"',
        "naïve 模型 🙂",
        "]]>",
        "&lt;",
        "<r><t>x</t></r>",
    ]
    sheet = openpyxl.load_workbook(write_workbook(board(names=tuple(texts)), tmp_path / "r.xlsx"))["Leaderboard"]
    plan = layout(board(names=tuple(texts)))
    column = plan.letter("Checkpoint")
    assert [sheet[f"{column}{plan.first_row + n}"].value for n in range(len(texts))] == texts


def computed_by_libreoffice(board, folder):
    """The averages that LibreOffice finds, without the values that stand beside the formulas in the file."""
    plan = layout(board)
    with ZipFile(write_workbook(board, folder / "full.xlsx")) as full, ZipFile(folder / "report.xlsx", "w") as bare:
        for name in full.namelist():
            bare.writestr(name, re.sub(rb"</f><v>[^<]*</v>", b"</f>", full.read(name)))
    subprocess.run(
        [
            "soffice",
            f"-env:UserInstallation=file://{folder}/profile",
            "--headless",
            "--convert-to",
            "xlsx",
            "--outdir",
            "computed",
            "report.xlsx",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=HANGS,
    )
    sheet = openpyxl.load_workbook(folder / "computed" / "report.xlsx", data_only=True)["Leaderboard"]
    column = plan.letter("Average")
    return [sheet[f"{column}{plan.first_row + n}"].value or None for n in range(len(board.rows))]


needs_libreoffice = pytest.mark.skipif(shutil.which("soffice") is None, reason="LibreOffice is not installed")


@pytest.mark.host
@needs_libreoffice
def test_libreoffice_computes_the_averages_of_changed_weights(tmp_path):
    changed = dataclasses.replace(board(), weights={"mmstar": 3.0, "mme": 1.0})
    averages = computed_by_libreoffice(changed, tmp_path)
    assert averages == [48.125, 47.5, None]  # (3·39 + 1510/20)/4 and (3·38 + 1520/20)/4; gamma lacks MME


@pytest.mark.host
@needs_libreoffice
def test_libreoffice_computes_the_averages_of_the_paper(tmp_path):
    paper = join(paper_sources(), paper_config())
    averages = computed_by_libreoffice(paper, tmp_path)
    assert averages == [None if row.average is None else pytest.approx(row.average, abs=1e-9) for row in paper.rows]
    assert sum(average is not None for average in averages) == 25
