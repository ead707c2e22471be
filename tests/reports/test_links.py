"""``--link``: a pre-trained checkpoint and the scores of what was fine-tuned from it are one row."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_boards import save_mir

from mir_plugin.errors import MirError
from mir_plugin.reports.board.board import BoardRow
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
