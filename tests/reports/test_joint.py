"""Joining: identity, cohorts, ranks, averages, and what is said about the rest."""

from __future__ import annotations

import json

import pytest
from report_boards import save_mir

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.identity import short_names
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.view.training import training_runs


def scores_csv(folder, *lines, header="checkpoint,MMStar,MME"):
    path = folder / "scores.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_mir_and_scores_meet_on_the_checkpoint_however_its_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts" / "a").mkdir(parents=True)
    save_mir(tmp_path / "out" / "mir.json", str(tmp_path / "ckpts" / "a"), 100.0)
    table = scores_csv(tmp_path, "./ckpts/a/,40,1500")
    (row,) = join(read_sources([tmp_path / "out", table])).rows
    assert (row.mir is not None, row.scores) == (True, {"mmstar": 40.0, "mme": 1500.0})


def test_copies_of_one_checkpoint_are_joined_by_the_fingerprint_of_their_weights(tmp_path):
    save_mir(tmp_path / "1" / "mir.json", "/a/model", 100.0, weights="same", created="2026-01-01T00:00:00+00:00")
    save_mir(tmp_path / "2" / "mir.json", "/b/model", 200.0, weights="same", created="2026-02-01T00:00:00+00:00")
    board = join(read_sources([tmp_path]))
    assert [row.mir for row in board.rows] == [pytest.approx(2.602, abs=1e-3)]  # log10(400): the newest counts
    assert any(p.kind == "superseded" and "2.301" in p.what for p in board.problems)


def test_equal_display_names_do_not_join(tmp_path):
    save_mir(tmp_path / "mir.json", "/runs/1/model", 100.0)
    board = join(read_sources([tmp_path / "mir.json", scores_csv(tmp_path, "/runs/2/model,40,1500")]))
    assert {row.name for row in board.rows} == {"1_model", "2_model"}
    unmatched = {p.where: p.what for p in board.problems if p.kind == "unmatched"}
    assert set(unmatched) == {"1_model", "2_model"}
    assert "looks alike" in unmatched["1_model"]


def test_a_name_in_a_table_and_the_same_name_in_vlmevalkit_are_two_until_the_user_joins_them(tmp_path):
    """One cannot know: pretrained=llava may be any folder. Their scores once stood in one row under two names."""
    model = tmp_path / "eval" / "llava"
    (model / "T20261121-004534").mkdir(parents=True)
    (model / "T20261121-004534" / "llava_MMStar_acc.csv").write_text("split,Overall\nnone,0.25\n")
    sources = [tmp_path / "eval", scores_csv(tmp_path, "llava,40,1500")]
    board = join(read_sources(sources))
    assert {(row.name, row.identity): row.scores for row in board.rows} == {
        ("llava", "llava"): {"mmstar": 40.0, "mme": 1500.0},
        ("llava (vlmevalkit)", "vlmevalkit:llava"): {"mmstar": 25.0},
    }
    assert {entry.name for entry in board.entries} == {row.name for row in board.rows}
    joined = join(read_sources(sources), ReportConfig.from_mapping({"models": [{"match": "llava", "name": "LLaVA"}]}))
    assert [row.name for row in joined.rows] == ["LLaVA"]
    measured = scores_csv(tmp_path, "llava,3.1", header="checkpoint,MIR")
    unmatched = {
        p.where: p.what for p in join(read_sources([tmp_path / "eval", measured])).problems if p.kind == "unmatched"
    }
    assert "llava (vlmevalkit) (vlmevalkit:llava) looks alike" in unmatched["llava"]
    assert "llava (llava) looks alike" in unmatched["llava (vlmevalkit)"]


def test_a_match_list_joins_what_the_user_knows_to_be_one(tmp_path):
    save_mir(tmp_path / "mir.json", "/runs/1/model", 100.0)
    config = ReportConfig.from_mapping(
        {"models": [{"match": ["/runs/1/model", "llava_v1.5_7b"], "name": "LLaVA", "group": "7B", "step": 30}]}
    )
    sources = [tmp_path / "mir.json", scores_csv(tmp_path, "llava_v1.5_7b,40,1500")]
    (row,) = join(read_sources(sources), config).rows
    assert (row.name, row.group, row.step, row.scores["mmstar"]) == ("LLaVA", "7B", 30, 40.0)


def test_a_match_that_fits_nothing_is_listed(tmp_path):
    save_mir(tmp_path / "mir.json", "/runs/1/model", 100.0)
    config = ReportConfig.from_mapping({"models": [{"match": "nowhere", "name": "x"}]})
    assert any("'nowhere'" in p.what for p in join(read_sources([tmp_path / "mir.json"]), config).problems)


def test_one_name_for_two_checkpoints_is_refused(tmp_path):
    save_mir(tmp_path / "a" / "mir.json", "/a", 100.0)
    save_mir(tmp_path / "b" / "mir.json", "/b", 100.0)
    config = ReportConfig.from_mapping({"models": [{"match": "/a", "name": "x"}, {"match": "/b", "name": "x"}]})
    with pytest.raises(MirError, match="calls different checkpoints 'x'"):
        join(read_sources([tmp_path]), config)


@pytest.mark.parametrize("change", [{"samples": "s2"}, {"protocol": "p2"}, {"estimator": "reference_fast"}])
def test_incomparable_values_never_share_a_ranking_without_a_warning(tmp_path, change):
    for name, distance in (("a", 100.0), ("b", 200.0)):
        save_mir(tmp_path / name / "mir.json", f"/{name}", distance)
    save_mir(tmp_path / "c" / "mir.json", "/c", 50.0, **change)
    board = join(read_sources([tmp_path]))
    assert [(row.name, row.cohort, row.rank) for row in board.rows] == [("a", "A", 1), ("b", "A", 2), ("c", "B", 1)]
    assert len(board.cohorts) == 2
    assert next(iter(change)) in board.warnings[0]
    assert "must not be compared" in board.warnings[0]


def test_a_checkpoint_measured_twice_stands_in_the_larger_cohort_and_the_other_value_is_listed(tmp_path):
    save_mir(tmp_path / "a" / "mir.json", "/a", 100.0)
    save_mir(tmp_path / "b" / "mir.json", "/b", 200.0)
    save_mir(tmp_path / "b2" / "mir.json", "/b", 50.0, samples="s2", created="2027-01-01T00:00:00+00:00")
    board = join(read_sources([tmp_path]))
    assert [(row.name, row.cohort) for row in board.rows] == [("a", "A"), ("b", "A")]
    assert any(p.kind == "incomparable" and "differs in samples" in p.what for p in board.problems)


def test_equal_values_share_a_rank_and_the_next_rank_is_skipped(tmp_path):
    for name, distance in (("a", 100.0), ("b", 100.0), ("c", 300.0)):
        save_mir(tmp_path / name / "mir.json", f"/{name}", distance)
    assert [row.rank for row in join(read_sources([tmp_path])).rows] == [1, 1, 3]


def test_an_average_needs_every_weighted_benchmark_and_divides_mme_by_twenty(tmp_path):
    config = ReportConfig.from_mapping({"average": ["mmstar", "mme"]})
    board = join(read_sources([scores_csv(tmp_path, "a,40,1500", "b,50,", "c,60,N/A", "d,20,1000")]), config)
    assert {row.name: row.average for row in board.rows} == {"a": 57.5, "b": None, "c": None, "d": 35.0}
    assert all("mme" not in row.scores for row in board.rows if row.name in "bc")
    assert {p.where for p in board.problems if "no average: it lacks MME" in p.what} == {"b", "c"}


def test_weights_of_the_configuration_count(tmp_path):
    config = ReportConfig.from_mapping({"weights": {"mmstar": 3, "mme": 1}})
    (row,) = join(read_sources([scores_csv(tmp_path, "a,40,1500")]), config).rows
    assert row.average == (3 * 40 + 75) / 4


def test_a_benchmark_of_the_users_own_is_read_where_the_configuration_says(tmp_path):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    data = {"results": {"my_task": {"acc,flexible": 0.5}}, "model_name": "m", "config": {"limit": None}}
    path.write_text(json.dumps(data))
    board = join(read_sources([tmp_path]))
    assert board.rows[0].scores == {"my_task": 0.5}  # shown as it is
    assert any("my_task" in p.what and "define:" in p.remedy for p in board.problems)
    own = {"key": "mine", "name": "Mine", "lmms_eval": {"task": "my_task", "metric": "acc", "scale": "fraction"}}
    (row,) = join(read_sources([tmp_path]), ReportConfig.from_mapping({"define": [own]})).rows
    assert row.scores == {"mine": 50.0}


def test_only_partial_runs_are_shown_with_a_warning(tmp_path):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    data = {"results": {"gqa": {"exact_match,none": 0.5}}, "model_name": "m", "config": {"limit": 8}}
    path.write_text(json.dumps(data))
    board = join(read_sources([tmp_path]))
    assert board.rows[0].scores == {"gqa": 50.0}
    assert any("partial" in warning for warning in board.warnings)


def test_scores_of_two_hosts_in_one_column_are_pointed_out(tmp_path):
    run = tmp_path / "vlm" / "T20261121-004534"
    run.mkdir(parents=True)
    (run / "vlm_MMStar_acc.csv").write_text("split,Overall\nnone,0.5\n")
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": {"mmstar": {"average,none": 0.5}}, "model_name": "m", "config": {}}))
    assert any("MMStar mixes" in warning for warning in join(read_sources([tmp_path])).warnings)


def test_the_mir_task_of_lmms_eval_and_the_full_result_beside_it_are_one_measurement(tmp_path):
    folder = tmp_path / "models__m"
    result = save_mir(folder / "20261121_095319_mir.json", "/models/m", 100.0)
    metrics = {"mir,none": result.mir, "mir_published,none": result.mir_published, "mir_stderr,none": "N/A"}
    data = {"results": {"mir": metrics, "gqa": {"exact_match,none": 0.5}}, "model_name": "models/m", "config": {}}
    (folder / "20261121_095319_results.json").write_text(json.dumps(data))
    board = join(read_sources([tmp_path]))
    (row,) = board.rows
    assert (row.mir, row.scores, len(row.layers), row.cohort) == (result.mir, {"gqa": 50.0}, 2, "A")
    assert board.warnings == ()
    assert [p for p in board.problems if p.kind in ("incomparable", "unmatched")] == []


def test_the_mir_task_alone_is_enough(tmp_path):
    path = tmp_path / "m" / "20261121_095319_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": {"mir": {"mir,none": 2.5}}, "model_name": "m", "config": {}}))
    assert join(read_sources([tmp_path])).rows[0].mir == 2.5


def test_mir_json_in_a_vlmevalkit_tree_joins_the_model_of_the_folder(tmp_path):
    run = tmp_path / "llava" / "T20261121-004534"
    run.mkdir(parents=True)
    (run / "llava_MMStar_acc.csv").write_text("split,Overall\nnone,0.5\n")
    (run / "llava_MIR_score.csv").write_text("mir\n2.5\n")
    save_mir(run / "llava_MIR_mir.json", "/data/llava", 100.0)
    (row,) = join(read_sources([tmp_path])).rows
    assert (row.mir is not None, row.scores) == (True, {"mmstar": 50.0})


@pytest.mark.parametrize(
    ("checkpoint", "name", "step"),
    [
        ("/runs/x/checkpoint-500", "x_checkpoint-500", 500),
        ("/runs/x/step-500", "x_step-500", 500),
        ("/runs/x/global_step500", "x_global_step500", 500),
        ("/runs/llava-7b_step-20", "llava-7b_step-20", 20),
        ("/runs/vicuna-13", "vicuna-13", None),
    ],
)
def test_a_training_step_is_read_from_the_checkpoints_name(tmp_path, checkpoint, name, step):
    save_mir(tmp_path / "mir.json", checkpoint, 100.0)
    (row,) = join(read_sources([tmp_path])).rows
    assert (row.name, row.step) == (name, step)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b'{"mir": 1}', b"\xff"])
def test_a_damaged_mir_json_is_named_and_the_rest_goes_through(tmp_path, content):
    save_mir(tmp_path / "good" / "mir.json", "/a", 100.0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "mir.json").write_bytes(content)
    board = join(read_sources([tmp_path]))
    assert len(board.rows) == 1
    assert [p.where for p in board.problems if p.severity == "error"] == [str(tmp_path / "bad" / "mir.json")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column names the checkpoint"),
        ("a,b\n1,2\n", "columns are: a, b"),
        ("checkpoint,MMStar\nx,bad\n", "'bad'"),
        ("checkpoint,MMStar\n,40\n", "names no checkpoint"),
        ('checkpoint,MMStar\n"x,40\n', "not read"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(tmp_path, text, told):
    (tmp_path / "t.csv").write_text(text)
    assert any(told in problem.what for problem in read_sources([tmp_path / "t.csv"]).problems)


def test_a_source_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(MirError, match="matches nothing"):
        read_sources([tmp_path / "nowhere*"])
    with pytest.raises(MirError, match="no source"):
        read_sources([])


def test_globs_are_expanded_and_a_file_is_read_once(tmp_path):
    save_mir(tmp_path / "a" / "mir.json", "/a", 100.0)
    assert len(read_sources([str(tmp_path / "*" / "mir.json"), tmp_path / "a" / "mir.json"]).measurements) == 1


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"weigths": {}}, "did you mean weights"),
        ({"weights": {"mmstr": 1}}, "did you mean mmstar"),
        ({"weights": {"mmstar": -1}}, "weights\\.mmstar is -1"),
        ({"benchmarks": ["nothing"]}, "'nothing'"),
        ({"models": [{"name": "x"}]}, "models\\[0\\].match"),
        ({"models": [{"match": "x", "step": "soon"}]}, "models\\[0\\].step is 'soon'"),
        ({"define": [{"key": "x", "lmms_eval": {"task": "t"}}]}, "task and metric"),
        ([], "mapping"),
    ],
)
def test_mistakes_in_the_configuration_are_told_with_their_place(data, told):
    with pytest.raises(MirError, match=told):
        ReportConfig.from_mapping(data)


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", 'a"/b', "first\n/second", "x | y/z"])
def test_a_name_that_is_no_path_is_shown_whole(label):
    assert short_names([label, "runs/llava"]) == {label: label, "runs/llava": "llava"}


def test_names_and_groups_never_take_a_checkpoint_from_its_training_curve(tmp_path):
    for run in ("a", "b"):
        for step in (200, 400, 800):
            path = f"runs/{run}/checkpoint-{step}"
            save_mir(tmp_path / run / str(step) / "mir.json", path, 1000 / step, weights=f"{run}{step}")
    table = scores_csv(tmp_path, "a-sft-800,40,1500", "sft/b-800,41,1510")
    entry = {"match": ["runs/b/checkpoint-800", "sft/b-800"], "name": "B, 800 steps", "group": "B"}
    earlier = {"match": ["a-sft-800", "runs/a/checkpoint-800"], "name": "A at the end"}
    config = ReportConfig.from_mapping({"models": [entry, earlier]})
    joined = join(read_sources([tmp_path, table]), config)
    runs = {run.label: [row.step for row in run.rows] for run in training_runs(joined)}
    assert runs == {"a": [200, 400, 800], "b": [200, 400, 800]}
    identities = {row.name: row.identity for row in joined.rows}
    assert identities["B, 800 steps"] == "runs/b/checkpoint-800"
