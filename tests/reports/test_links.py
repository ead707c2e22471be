"""A pre-trained checkpoint and the scores of what was fine-tuned from it are one row: as told, or as folders say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_boards import save_mir

from mir_plugin.errors import MirError
from mir_plugin.reports.board.board import Board, BoardRow
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.sources import read_sources


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    save_mir(tmp_path / "mir.json", "runs/a/checkpoint-800", 100.0)
    (tmp_path / "scores.csv").write_text("checkpoint,MMStar\nsft/a-800,32.4\nsft/other,30\n")
    return [tmp_path / "mir.json", tmp_path / "scores.csv"]


def rows(sources: list[Path], config: ReportConfig) -> list[BoardRow]:
    return list(join(read_sources(sources), config).rows)


def test_without_a_link_they_are_two(sources: list[Path]) -> None:
    assert len(rows(sources, ReportConfig())) == 3


def test_a_link_joins_mir_and_scores(sources: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "links.csv"
    table.write_text("pretrained,finetuned\nruns/a/checkpoint-800,sft/a-800\n")
    for link in ("runs/a/checkpoint-800=sft/a-800", "checkpoint-800 = a-800", str(table)):
        joined = rows(sources, ReportConfig().linking([link]))
        assert [(row.mir is not None, row.scores.get("mmstar")) for row in joined] == [(True, 32.4), (False, 30.0)]
        assert joined[0].step == 800


def test_a_link_leaves_the_configured_name(sources: list[Path]) -> None:
    named = ReportConfig.from_mapping({"models": [{"match": ["sft/a-800"], "name": "ours"}]})
    assert rows(sources, named.linking(["runs/a/checkpoint-800=sft/a-800"]))[0].name == "ours"


def test_a_link_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("a", "=b", "a="):
        with pytest.raises(MirError, match="PRETRAIN=SFT"):
            ReportConfig().linking([text])
    for content in ("pretrained,finetuned\n", "pretrained,finetuned\na,\n", "a\nb\n"):
        (tmp_path / "links.csv").write_text(content)
        with pytest.raises(MirError, match=r"links\.csv"):
            ReportConfig().linking([str(tmp_path / "links.csv")])
    with pytest.raises(MirError, match=r"none\.csv"):
        ReportConfig().linking([str(tmp_path / "none.csv")])


def test_the_row_has_mir_before_and_scores_after(tmp_path: Path) -> None:
    before = save_mir(tmp_path / "a-mir.json", "runs/a/checkpoint-800", 100.0)
    save_mir(tmp_path / "b-mir.json", "sft/checkpoint-5000", 10.0, created="2026-12-21T10:00:00+00:00")
    table = "checkpoint,MMStar,GQA\nsft/checkpoint-5000,32.4,50\nruns/a/checkpoint-800,5,6\n"
    (tmp_path / "scores.csv").write_text(table)
    config = ReportConfig.from_mapping(
        {"links": [{"pretrained": "runs/a/checkpoint-800", "finetuned": "sft/checkpoint-5000"}]}
    )
    board = join(read_sources([*tmp_path.glob("*.json"), tmp_path / "scores.csv"]), config)
    (row,) = board.rows
    assert (row.mir, row.scores, row.step, row.identity) == (
        before.mir, {"mmstar": 32.4, "gqa": 50.0}, 800, "runs/a/checkpoint-800"
    )  # fmt: skip
    assert sum(problem.kind == "linked" for problem in board.problems) == 2


def test_a_checkpoint_is_linked_once(sources: list[Path]) -> None:
    for links in (["checkpoint-800=a-800", "checkpoint-800=other"],):
        with pytest.raises(MirError, match="once"):
            rows(sources, ReportConfig().linking(links))


def fine_tuned(folder: Path, files: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def reported(tmp_path: Path, *scored: Path, mir_of_scored: bool = False) -> Board:
    """A measured ``runs/pre/checkpoint-800``, and scores of the given folders."""
    pretrained = tmp_path / "runs" / "pre" / "checkpoint-800"
    pretrained.mkdir(parents=True, exist_ok=True)
    save_mir(tmp_path / "pre" / "mir.json", str(pretrained), 100.0)
    save_mir(tmp_path / "other" / "mir.json", str(tmp_path / "runs" / "pre" / "checkpoint-400"), 200.0)
    found = [tmp_path / "pre", tmp_path / "other"]
    if mir_of_scored:
        save_mir(tmp_path / "sft" / "mir.json", str(scored[0]), 50.0)
        found.append(tmp_path / "sft")
    lines = "".join(f"{folder},{30 + number}\n" for number, folder in enumerate(scored))
    (tmp_path / "scores.csv").write_text(f"checkpoint,MMStar\n{lines}")
    return join(read_sources([*found, tmp_path / "scores.csv"]))


NAMED = "runs/pre/checkpoint-800"


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": {"pretrain_mm_mlp_adapter": f"./{NAMED}/mm_projector.bin", "_name_or_path": "lmsys/vicuna"}},
        {"config.json": {"_name_or_path": NAMED}},
        {"trainer_state.json": {"pretrain_mm_mlp_adapter": f"./{NAMED}/mm_projector.bin", "global_step": 3}},
        {"args.json": {"model": NAMED}},
        {"config.json": {}, "adapter_config.json": {"base_model_name_or_path": NAMED}},
        {"README.md": f"---\nbase_model: {NAMED}\nlicense: mit\n---\n# sft"},
    ],
    ids=["projector", "transformers", "trainer-state", "ms-swift", "peft", "model-card"],
)
def test_a_folder_that_names_its_pretrained_checkpoint_is_linked(tmp_path: Path, files: dict[str, object]) -> None:
    board = reported(tmp_path, fine_tuned(tmp_path / "out" / "sft", files))
    both = [row for row in board.rows if row.mir is not None and row.scores]
    assert [(row.step, row.scores) for row in both] == [(800, {"mmstar": 30.0})]
    assert len(board.rows) == 2
    (note,) = [problem for problem in board.problems if problem.kind == "linked"]
    assert NAMED in note.what
    assert next(iter(files)) in note.what or "adapter_config.json" in note.what


def test_arguments_beside_the_steps_of_a_run_count(tmp_path: Path) -> None:
    fine_tuned(tmp_path / "out", {"args.json": {"model": NAMED}})
    board = reported(tmp_path, fine_tuned(tmp_path / "out" / "checkpoint-9", {"config.json": {}}))
    assert len(board.rows) == 2


def test_folders_do_not_link_where_it_is_not_sure(tmp_path: Path) -> None:
    config = {"config.json": {"_name_or_path": NAMED}}
    one, other = (fine_tuned(tmp_path / "out" / name, config) for name in ("one", "other"))
    board = reported(tmp_path, one, other)
    assert len(board.rows) == 4
    assert any("linked to none" in problem.what for problem in board.problems)
    assert len(reported(tmp_path, one, mir_of_scored=True).rows) == 3  # it has a MIR of its own
    assert len(reported(tmp_path, one, tmp_path / NAMED).rows) == 3  # both have scores


@pytest.mark.parametrize("damaged", ["{", "[]", '{"_name_or_path": 3}', '{"_name_or_path": ""}'])
def test_a_damaged_folder_names_nothing(tmp_path: Path, damaged: str) -> None:
    folder = fine_tuned(tmp_path / "out" / "sft", {"config.json": damaged, "README.md": "---\n[: \n---\n"})
    assert len(reported(tmp_path, folder).rows) == 3


def test_an_explicit_link_decides_among_several(tmp_path: Path) -> None:
    config = {"config.json": {"_name_or_path": NAMED}}
    one, other = (fine_tuned(tmp_path / "out" / name, config) for name in ("one", "other"))
    reported(tmp_path, one, other)
    found = read_sources([tmp_path / "pre", tmp_path / "scores.csv"])
    board = join(found, ReportConfig().linking(["checkpoint-800=other"]))
    assert [row.scores for row in board.rows] == [{"mmstar": 31.0}, {"mmstar": 30.0}]


@pytest.mark.parametrize("links", [[{"pretrained": "a"}], [{"pretrained": "a", "finetuned": 3}], ["a=b"], "a=b"])
def test_a_wrong_link_of_the_configuration_names_its_key(links: object) -> None:
    with pytest.raises(MirError, match="links"):
        ReportConfig.from_mapping({"links": links})
