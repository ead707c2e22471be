"""Static figures: which are drawn, that the numbers are in them, and that they never change by themselves."""

from __future__ import annotations

import dataclasses
import re

import matplotlib
import pytest
from report_boards import board, layer

from mir_plugin.reports.board.board import Coefficient, Cohort, Correlation
from mir_plugin.reports.figures import figures
from mir_plugin.reports.figures.figures import layers_figure, training_figure, write_figures
from mir_plugin.reports.figures.scatter import score_figure, scores_figure
from mir_plugin.reports.figures.style import STYLE
from mir_plugin.reports.read.headline_table import BENCHMARKS, TRAINING_LOSS
from mir_plugin.reports.read.records import Comparability
from mir_plugin.reports.view.series import main_column, main_scope, scatter
from mir_plugin.reports.view.training import training_runs

pytestmark = pytest.mark.slow

LOSS = next(benchmark for benchmark in BENCHMARKS if benchmark.key == TRAINING_LOSS)


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(STYLE):
        yield


def training_board():
    """Two runs of three steps; the second lacks the loss of one."""
    rows = []
    for run in ("fast", "slow"):
        for number, row in enumerate(board().rows, start=1):
            step = 100 * number
            scores = {**row.scores} if (run, step) == ("slow", 200) else {**row.scores, TRAINING_LOSS: 3.0 - number / 2}
            identity = f"runs/{run}/checkpoint-{step}"
            rows.append(dataclasses.replace(row, identity=identity, name=identity, step=step, scores=scores))
    return board(rows=tuple(rows), benchmarks=(*board().benchmarks, LOSS))


def lines_of(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_a_report_has_png_and_svg_of_what_it_has_data_for(tmp_path):
    folder = write_figures(training_board(), tmp_path / "figures")
    names = ("layers", "mir-vs-score", "mir-vs-scores", "training-steps")
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}{s}" for n in names for s in (".png", ".svg")]
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    (tmp_path / "training-steps.png").write_bytes(b"old")
    write_figures(board(benchmarks=(), rows=()), tmp_path)
    assert not tmp_path.exists()


def test_the_same_board_gives_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", (("score", score_figure), ("layers", layers_figure)))
    once, again = (write_figures(board(), tmp_path / name) for name in ("once", "again"))
    for path in once.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_svg_text_is_text_and_names_are_taken_literally(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", (("layers", layers_figure),))
    folder = write_figures(board(names=("$x_1$ & <b>", "_beta", "gamma")), tmp_path)
    text = (folder / "layers.svg").read_text(encoding="utf-8")
    labels = [label.strip() for label in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    assert {"$x_1$ &amp; &lt;b&gt;", "_beta", "gamma"} <= set(labels)
    assert "<dc:date>" not in text


def test_the_points_of_the_score_figure_are_the_rows():
    axes = score_figure(board()).axes[0]
    points = sorted(tuple(point) for scatter in axes.collections[:1] for point in scatter.get_offsets().tolist())
    assert points == [(2.75, 39.0), (3.0, 38.0), (3.25, 37.0)]  # MMStar: no three rows have an average
    assert [text.get_text() for text in axes.texts] == ["alpha", "beta", "gamma"]


def test_every_score_has_a_panel_with_its_rank_correlation_and_number_of_rows():
    correlated = board(correlations=(Correlation("A", "mmstar", 3, spearman=Coefficient(-0.5)),))
    titles = [axes.get_title() for axes in scores_figure(correlated).axes if axes.get_visible()]
    assert titles == ["Average (%)\nn = 2", "MMStar (%)\nρ = −0.50, n = 3", "MME (points)\nn = 2"]


def test_few_layers_and_close_distances_have_whole_layers_and_several_numbers_on_the_axes():
    """Four layers once had ticks at 1.5, and distances from 0.6 to 1.4 the one number 1."""
    close = tuple(layer(k, 0.5 + 0.2 * k) for k in range(1, 5))
    figure = layers_figure(board(rows=tuple(dataclasses.replace(row, layers=close) for row in board().rows)))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert all(tick == int(tick) for tick in axes.get_xticks())
    shown = [label.get_text() for label in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True))]
    assert len([text for text in shown if text]) > 2


def test_layers_are_drawn_on_a_log_axis_from_layer_one():
    axes = layers_figure(board()).axes[0]
    assert lines_of(axes)["beta"] == [(1, 20.0), (2, 40.0)]
    assert axes.get_yscale() == "log"


def test_training_figure_has_mir_score_and_loss_over_steps():
    panels = training_figure(training_board()).axes
    assert [axes.get_ylabel() for axes in panels] == ["MIR", "Average (%)", "Training loss"]
    assert lines_of(panels[0])["fast"] == [(100, 2.75), (200, 3.0), (300, 3.25)]
    assert lines_of(panels[2])["slow"] == [(100, 2.5), (300, 1.5)]  # a missing loss is no point


def test_a_checkpoint_belongs_to_the_run_that_its_folder_or_its_name_says():
    names = ("a-step-100", "a-step-200", "b_ckpt-100", "b_ckpt-200", "c/epoch1", "c/epoch2", "d/checkpoint-1", "d/last")
    steps = (100, 200, 100, 200, 1, 2, 1, 2)
    row = board().rows[0]
    rows = [
        dataclasses.replace(row, identity=f"runs/{name}", step=step) for name, step in zip(names, steps, strict=True)
    ]
    runs = training_runs(board(rows=tuple(rows)))
    assert [(run.label, [row.step for row in run.rows]) for run in runs] == [
        ("a", [100, 200]),
        ("b", [100, 200]),
        ("c", [1, 2]),
        ("d", [1, 2]),
    ]


def test_runs_of_one_group_are_told_apart_by_their_folders():
    row = board().rows[0]
    rows = [
        dataclasses.replace(row, identity=f"runs/{run}/checkpoint-{step}", step=step, group=run.split("-")[0])
        for run in ("mlp-seed-0", "mlp-seed-1", "linear-seed-0")
        for step in (100, 200)
    ]
    assert [run.label for run in training_runs(board(rows=tuple(rows)))] == ["linear", "mlp-seed-0", "mlp-seed-1"]


def test_checkpoints_without_steps_make_no_training_figure():
    assert training_runs(board()) == ()
    assert training_figure(board()) is None


def test_only_one_cohort_is_drawn_and_the_figure_says_so():
    rows = [dataclasses.replace(row, cohort="B" if row.name == "gamma" else "A") for row in board().rows]
    cohorts = (Cohort("A", Comparability("exact", "s1", "p1"), 2), Cohort("B", Comparability("exact", "s2", "p1"), 1))
    figure = layers_figure(board(rows=tuple(rows), cohorts=cohorts))
    assert set(lines_of(figure.axes[0])) == {"alpha", "beta"}
    assert "Cohort A of 2" in figure.get_supxlabel()


def test_figures_are_of_the_cohort_that_has_points(tmp_path):
    rows = [dataclasses.replace(row, scores={}, average=None) for row in board().rows]
    rows += [
        dataclasses.replace(row, name=f"{row.name} b", identity=f"{row.identity}/b", cohort="B")
        for row in board().rows[:2]
    ]
    other = Cohort("B", Comparability("unstated"), 2)
    mixed = board(rows=tuple(rows), cohorts=(*board().cohorts, other))
    assert [len(points.rows) for points in [scatter(main_scope(mixed), main_column(mixed))]] == [2]
    assert score_figure(mixed).axes[0].collections
    assert all(axes.collections for axes in scores_figure(mixed).axes if axes.get_visible())


def test_a_board_without_scores_has_no_scatter_and_one_without_anything_no_folder(tmp_path):
    unscored = board(rows=tuple(dataclasses.replace(row, scores={}, average=None) for row in board().rows))
    assert score_figure(unscored) is None
    assert scores_figure(unscored) is None
    bare = tuple(dataclasses.replace(row, scores={}, average=None, layers=()) for row in board().rows)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mir-vs-score.png").touch()
    assert write_figures(board(rows=bare), tmp_path / "figures") is None
    assert not (tmp_path / "figures").exists()
