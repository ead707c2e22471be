"""Columns of score tables: known by many names, on the scale that their values show, shown as they are otherwise."""

from __future__ import annotations

import pytest

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.benchmarks import AVERAGE_SETS, find_column
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.view.columns import BestValues, leaderboard_columns
from mir_plugin.reports.view.tables import average_rule


def table(folder, *lines, name="t.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def scores(*paths, config=None):
    return {row.name: dict(row.scores) for row in join(read_sources(paths), config).rows}


@pytest.mark.parametrize(
    ("heading", "key"),
    [
        ("SQA", "scienceqa_image"),
        ("SQA-I", "scienceqa_image"),
        ("SQA^I", "scienceqa_image"),
        ("MMMU-val", "mmmu"),
        ("LLaVA-W", "llava_wild"),
        ("SEED", "seed_image"),
        ("SEED-I", "seed_image"),
        ("MMB-CN", "mmbench_cn"),
        ("mmb_cn", "mmbench_cn"),
        ("VQA-T", "textvqa"),
        ("MM-Vet", "mmvet"),
        ("MME-P", "mme"),
        ("MathVista", "mathvista"),
        ("Average (paper-7)", "average_stated"),
    ],
)
def test_common_headings_are_known(heading, key):
    assert find_column(heading, BENCHMARKS).key == key


def test_no_heading_means_two_benchmarks():
    letters = lambda text: "".join(filter(str.isalnum, text.casefold()))  # noqa: E731
    for benchmark in BENCHMARKS:
        for heading in (benchmark.key, benchmark.name, *benchmark.columns):
            owners = {
                one.key for one in BENCHMARKS if letters(heading) in map(letters, (one.key, one.name, *one.columns))
            }
            assert owners == {benchmark.key}, heading


def test_a_column_of_fractions_is_shown_as_percent_and_that_is_said(tmp_path):
    path = table(tmp_path, "model,MMStar,TextVQA", "A,0.312,0.582", "B,0.303,0.60")
    assert scores(path)["A"] == pytest.approx({"mmstar": 31.2, "textvqa": 58.2})
    said = [p for p in join(read_sources([path])).problems if p.kind == "converted"]
    assert ["MMStar" in p.what or "TextVQA" in p.what for p in said] == [True, True]


def test_a_fraction_among_percentages_is_left_out_unless_a_percent_sign_settles_it(tmp_path):
    path = table(tmp_path, "model,POPE", "A,85.9", "B,0.861")
    assert scores(path) == {"A": {"pope": 85.9}, "B": {}}
    assert any(p.severity == "warning" and "0.861" in p.what for p in join(read_sources([path])).problems)
    assert scores(table(tmp_path, "model,POPE", "A,85.9", "B,0.861%"))["B"] == {"pope": 0.861}


def test_ones_and_zeros_alone_are_not_taken_for_fractions(tmp_path):
    assert scores(table(tmp_path, "model,POPE", "A,1", "B,0"))["A"] == {}


def test_mme_beyond_perception_is_the_total_and_near_it_nobody_knows(tmp_path):
    total = scores(table(tmp_path, "model,MME", "A,1862.0", "B,2100.5"))
    assert total == {"A": {"mme_total": 1862.0}, "B": {"mme_total": 2100.5}}
    unclear = table(tmp_path, "model,MME,MMStar", "A,1862.0,31.2", "B,1943.8,33")
    assert scores(unclear)["B"] == {"mmstar": 33, "mme_as_written": 1943.8}
    board = join(read_sources([unclear]), ReportConfig().averaging("mmstar,mme"))
    assert [row.average for row in board.rows] == [None, None]
    assert any(p.severity == "warning" and "1943.8" in p.what and "MME-P" in p.remedy for p in board.problems)
    assert scores(table(tmp_path, "model,MME-P", "A,1943.8"))["A"] == {"mme": 1943.8}


def test_cells_kept_by_hand_are_read(tmp_path):
    path = table(tmp_path, "model,MMStar,MME,MMB,SQA_I", 'A,33.1%,"1,510.7",**65.0**,67.1±0.2')
    assert scores(path)["A"] == {"mmstar": 33.1, "mme": 1510.7, "mmbench": 65.0, "scienceqa_image": 67.1}


def test_an_unknown_column_is_shown_as_it_is_with_no_best_value_and_in_no_average(tmp_path):
    path = table(tmp_path, "model,MMStar,My Bench", "A,30,0.25", "B,31,7")
    board = join(read_sources([path]), ReportConfig().averaging("mmstar"))
    assert {row.name: row.scores["My Bench"] for row in board.rows} == {"A": 0.25, "B": 7}
    assert {row.name: row.average for row in board.rows} == {"A": 30, "B": 31}
    (column,) = (column for column in leaderboard_columns(board) if column.heading == "My Bench")
    assert column.number_format == "0.00"
    assert not any(BestValues.of(board).hold(column, row) for row in board.rows)
    assert any("My Bench" in p.what and "define:" in p.remedy for p in board.problems)


def test_the_users_own_definition_of_a_heading_wins(tmp_path):
    own = {"define": [{"key": "sqa", "name": "SQA"}]}
    assert scores(table(tmp_path, "model,SQA", "A,60"), config=ReportConfig.from_mapping(own))["A"] == {"sqa": 60}


def test_an_average_does_not_depend_on_the_other_rows_of_the_folder(tmp_path):
    first = table(tmp_path, "model,MMStar,MME,MMBench,TextVQA", "A,30.3,1510.7,64.3,58.2", name="a.csv")
    second = table(tmp_path, "model,MMStar,MMBench", *(f"mine-{n},{30 + n},{60 + n}" for n in range(12)), name="b.csv")
    config = ReportConfig().averaging("mmstar,mme,mmbench,textvqa")

    def average(*paths):
        return next(row.average for row in join(read_sources(paths), config).rows if row.name == "A")

    assert average(first) == average(first, second) == pytest.approx((30.3 + 1510.7 / 20 + 64.3 + 58.2) / 4)
    assert all(row.average is None for row in join(read_sources([second]), config).rows)


def test_what_the_average_is_over_is_said_with_what_nobody_has(tmp_path):
    path = table(tmp_path, "model,MMStar,MME", "A,30.3,1510.7")
    rule = average_rule(join(read_sources([path]), ReportConfig().averaging("paper-9")))
    assert "paper-9" in rule and "MME ÷ 20" in rule and "No checkpoint here has MMBench, " in rule
    assert set(AVERAGE_SETS) == {"paper-7", "paper-9", "openvlm-8"}
    known = {benchmark.key for benchmark in BENCHMARKS if benchmark.averaged}
    assert all(known.issuperset(one.keys) for one in AVERAGE_SETS.values())


def test_an_average_over_something_unknown_is_refused():
    with pytest.raises(MirError, match=r"mmstarr.*mmstar"):
        ReportConfig().averaging("mmstarr,mme")
    with pytest.raises(MirError, match=r"paper-7, paper-9, openvlm-8, .*did you mean paper-9") as error:
        ReportConfig().averaging("paper-8")
    assert len(str(error.value)) < 300, "not all benchmarks there are"
    with pytest.raises(MirError, match=r"names\.yaml.*average and weights"):
        ReportConfig.from_mapping({"average": "paper-7", "weights": {"mme": 1}}, "names.yaml")


def test_a_leaderboards_json_is_not_to_be_deleted(tmp_path):
    (tmp_path / "board.json").write_text('{"time": "241001", "results": {"LLaVA": {"MMStar": {"Overall": 33.1}}}}')
    (problem,) = read_sources([tmp_path / "board.json"]).problems
    assert problem.severity == "error"
    assert "CSV" in problem.remedy and "delete" not in problem.remedy
