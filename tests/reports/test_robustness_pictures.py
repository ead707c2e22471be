"""Robustness and pictures in reports: sheets read back, figures drawn, pictures inside the page."""

from __future__ import annotations

import base64
import dataclasses
import re

import openpyxl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_boards import board, save_mir

from mir_plugin.pictures.data import NormHistogram, Pictures, TokenMap
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.build import build_report
from mir_plugin.reports.figures.pictures import (
    norms_figure,
    tokens_figure,
    write_gaps,
    write_pictures,
)
from mir_plugin.reports.figures.robustness import robustness_figure, write_robustness_figure
from mir_plugin.reports.page.page import MAX_PICTURES, render_page
from mir_plugin.reports.read.records import Picture
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.workbook.robustness import (
    CONDITION_COLUMNS,
    NUMBER_COLUMNS,
    VERDICT_COLUMNS,
    write_robustness_workbook,
)
from mir_plugin.robustness.results import (
    ChoiceResult,
    ConditionResult,
    NumberRow,
    Robustness,
    Verdict,
)

HOSTILE = '=cmd|"/c calc"!A1 <b>$x$'


def robustness() -> Robustness:
    conditions = tuple(
        ConditionResult(name, study, condition, mir, mir + 1, mir - 0.1, mir + 0.1, 100, 2500, 9000, "x/mir.json")
        for study, condition, mir in (("content", "photos + news", 3.2), ("content", HOSTILE, 3.3))
        for name in ("a", HOSTILE)
    )
    choices = tuple(
        ChoiceResult(name, n, seed, 3.0 + seed / 10)
        for name in ("a", HOSTILE)
        for n, seed in ((1, 0), (1, 1), (100, 0))
    )
    verdict = Verdict("content", "image and text content", 0.1, 0.2, 0.5, 2, 1, "not robust", "It moves.")
    return Robustness(
        {"a": "runs/a", HOSTILE: "runs/b"},
        100,
        conditions,
        choices,
        (verdict,),
        {"exposure": "nobody knows"},
        {"runs/other": 3.4},
        ("a note",),
    )


def pictures() -> Pictures:
    points = tuple((float(i % 7), float(i % 5)) for i in range(35))
    norms = [
        NormHistogram(layer, modality, (1.0, 2.0, last), (3, 4), 1.5, -0.5, 2.5, 1)
        for layer in (1, 8)
        for modality, last in (("vision", 900.0), ("text", 3.0))
    ]
    maps = [
        TokenMap(layer, method, points, points[: 10 - layer], "note") for layer in (1, 8) for method in ("pca", "tsne")
    ]
    return Pictures("runs/a", "key", (1, 8), 8, 100, tuple(maps), tuple(norms))


def cells(sheet) -> list[list[object]]:
    return [list(row) for row in sheet.iter_rows(values_only=True)]


def test_the_workbook_holds_verdicts_conditions_and_numbers_of_samples(tmp_path):
    path = write_robustness_workbook(robustness(), tmp_path / "robustness.xlsx")
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["Robustness verdict", "Robustness", "Sample number"]
    heading, first, *rest = cells(book["Robustness verdict"])
    assert dict(zip(heading, first, strict=True))["Same order"] == 1
    assert {cell.alignment.vertical for cell in book["Robustness verdict"][2]} == {"top"}, "wrapped text begins there"
    outcomes = ("robust", "order kept", "unclear", "not robust", "nothing to compare with")
    assert max(map(len, outcomes)) < book["Robustness verdict"].column_dimensions["B"].width
    assert ["Data seen and not seen in training".lower(), "nobody knows"] in [row[:2] for row in rest]
    assert any("a note" in row for row in rest)
    conditions = cells(book["Robustness"])
    assert [row[1] for row in conditions[1:]] == ["photos + news", "photos + news", HOSTILE, HOSTILE]
    assert all(cell.data_type == "s" for cell in book["Robustness"]["C"])
    numbers = cells(book["Sample number"])
    assert numbers[1][:6] == ["a", 1, 2, pytest.approx(3.05), 3.0, 3.1]


def test_every_column_reads_its_own_field():
    for kind, columns in (
        (ConditionResult, CONDITION_COLUMNS),
        (NumberRow, NUMBER_COLUMNS),
        (Verdict, VERDICT_COLUMNS),
    ):
        sentinel = kind(**{field.name: field.name for field in dataclasses.fields(kind)})
        read = [column.value(sentinel) for column in columns]
        assert len(set(read)) == len(read)
        assert set(read) <= {field.name for field in dataclasses.fields(kind)}


def test_a_report_takes_the_study_in_and_leaves_its_measurements_off_the_leaderboard(tmp_path):
    study = tmp_path / "study"
    robustness().save(study / "robustness.json")
    write_robustness_figure(robustness(), study)
    save_mir(study / "a" / "photos-news" / "mir.json", "runs/a", 50.0)
    save_mir(tmp_path / "mir.json", "runs/b", 60.0)
    pictures().save(tmp_path / "pictures" / "pictures.json")
    write_pictures(pictures(), tmp_path / "pictures")
    files = build_report([tmp_path], tmp_path / "report", ReportConfig(formats=("xlsx", "html")))
    assert [row.name for row in files.board.rows] == ["b"]
    assert "Sample number" in openpyxl.load_workbook(files.paths["xlsx"]).sheetnames
    assert [picture.caption.split(",")[0] for picture in files.board.pictures] == [
        "vision and text tokens",
        "vision and text tokens",
        "norms of vision and text tokens",
        "MIR under every condition",
    ]
    assert [picture.title for picture in files.board.pictures] == ["runs/a"] * 3 + ["Robustness"]
    page = files.paths["html"].read_text()
    assert page.count("data:image/png;base64,") == 4
    norms = base64.b64encode((tmp_path / "pictures" / "norms.png").read_bytes()).decode()
    assert norms in page


def test_what_cannot_be_read_is_a_problem_and_not_the_end(tmp_path):
    (tmp_path / "pictures.json").write_text("{}")
    (tmp_path / "robustness.json").write_text("[]")
    problems = read_sources([tmp_path / "pictures.json", tmp_path / "robustness.json"]).problems
    assert [problem.kind for problem in problems] == ["unreadable", "unreadable"]
    pictures().save(tmp_path / "pictures.json")
    assert "tokens-pca.png" in read_sources([tmp_path / "pictures.json"]).problems[0].what


def test_the_page_shows_so_many_pictures_and_counts_the_rest():
    some = tuple(Picture(HOSTILE, f"number {n}", b"png", "x.png") for n in range(MAX_PICTURES + 2))
    page = render_page(dataclasses.replace(board(), pictures=some))
    assert page.count("<img") == MAX_PICTURES
    assert "2 more are in the folders" in page
    assert "<b>$x$" not in page
    assert "<img" not in render_page(board())


def test_figures_name_what_they_show_and_are_the_same_every_time(tmp_path):
    axes = robustness_figure(robustness()).axes
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert labels == ["image and text content", "photos + news", HOSTILE]
    assert axes[1].get_xlabel() == "Number of samples"
    without = dataclasses.replace(robustness(), choices=())
    assert len(robustness_figure(without).axes) == 1
    for attempt in ("one", "two"):
        write_robustness_figure(robustness(), tmp_path / attempt)
        write_pictures(pictures(), tmp_path / attempt)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        f"{stem}.{suffix}" for stem in ("norms", "robustness", "tokens-pca", "tokens-tsne") for suffix in ("png", "svg")
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_norms_show_their_thresholds_and_stretch_the_axis_where_needed():
    figure = norms_figure(pictures())
    left = figure.axes[0]
    thresholds = [line.get_xdata()[0] for line in left.get_lines()]
    assert thresholds == [2.5, 2.5]  # those below 0 are beyond the axis
    assert left.get_xscale() == "log"
    figure.draw_without_rendering()
    texts = [tick.get_text() for tick in (*left.get_xticklabels(), *left.get_xticklabels(minor=True))]
    assert "10" in texts and not any("$" in text for text in texts)
    assert "outliers: 1 vision, 1 text" in left.get_title()


def test_every_panel_of_tokens_says_how_many_it_shows():
    figure = tokens_figure(pictures(), "pca")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["layer 1: 35 vision, 9 text\nnote", "layer 8: 35 vision, 2 text\nnote"]
    assert not re.search(r"\d+ (vision|text)", figure.get_supxlabel())


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["a", "llava-v1.5-13b-pretrain-blip_laion_cc_sbu_558k-with-a-name-that-is-long"])
def test_what_stands_below_the_panels_fits_their_width(n_layers, name):
    data = pictures()
    layers = range(1, n_layers + 1)
    data = dataclasses.replace(
        data,
        checkpoint=name,
        layers=tuple(layers),
        maps=tuple(dataclasses.replace(data.maps[0], layer=layer) for layer in layers),
        norms=tuple(dataclasses.replace(one, layer=layer) for layer in layers for one in data.norms[:2]),
    )
    for figure in (tokens_figure(data, "pca"), norms_figure(data)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        footnote = figure._supxlabel.get_window_extent(canvas.get_renderer())
        assert footnote.x0 >= 0 and footnote.x1 <= figure.bbox.width, (n_layers, footnote)
        axis = figure.axes[0].get_tightbbox(canvas.get_renderer())
        assert footnote.y0 >= 0 and footnote.y1 <= axis.y0, (n_layers, footnote, axis)


def test_gap_curves_of_several_models_share_a_picture(tmp_path):
    for name, distance in (("a", 50.0), ("b", 80.0)):
        save_mir(tmp_path / name / "mir.json", f"runs/{name}", distance)
    assert write_gaps([tmp_path / "a" / "mir.json", tmp_path / "b" / "mir.json"], tmp_path) == tmp_path / "gaps.png"
    text = (tmp_path / "gaps.svg").read_text()
    assert ">a<" in text and ">b<" in text
