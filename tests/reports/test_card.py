"""``mir report --card``: numbers of one checkpoint to paste into a model card and a paper."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import model_index_to_eval_results
from report_boards import save_mir
from typer.testing import CliRunner

from mir_plugin.cli import app
from mir_plugin.errors import MirError
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.text.card import BIBTEX, find_row, to_card
from mir_plugin.results import MirConfig


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    uncertainty = {"standard_error": 0.02, "low": 2.26, "high": 2.34, "confidence": 0.95}
    facts = {"dtype": "bfloat16"}
    common = {"uncertainty": uncertainty, "facts": facts, "versions": {"mir-plugin": "0.1.0"}}
    save_mir(tmp_path / "a" / "mir.json", "runs/a/checkpoint-800", 100.0, **common)
    save_mir(tmp_path / "b" / "mir.json", "runs/b/checkpoint-800", 100.0)
    (tmp_path / "scores.csv").write_text("checkpoint,MMStar,MME-P\nsft/a-800,32.45,1510.7\n")
    return [tmp_path / "a", tmp_path / "b", tmp_path / "scores.csv"]


def board(sources: list[Path], *links: str) -> Board:
    return join(read_sources(sources), ReportConfig().linking(links))


def evaluations(card: str) -> dict[str | None, EvalResult]:
    """What the Hub reads from the block, by the data set's type."""
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    data = yaml.safe_load(block)
    _, results = model_index_to_eval_results(data["model-index"])
    return {one.dataset_type: one for one in results}


def test_the_hub_reads_the_block(sources: list[Path]) -> None:
    found = board(sources, "runs/a/checkpoint-800=sft/a-800")
    results = evaluations(to_card(found, find_row(found, "runs/a/checkpoint-800")))
    assert {key: one.metric_value for key, one in results.items()} == {"mir": 2.301, "mmstar": 32.5, "mme": 1510.7}
    assert results["mir"].dataset_args["interval_95"] == [2.26, 2.34]
    assert results["mir"].dataset_args["n_samples"] == 100
    assert results["mir"].dataset_args["checkpoint"] == "runs/a/checkpoint-800"


def test_the_methods_sentence_has_the_numbers_and_the_protocol(sources: list[Path]) -> None:
    found = board(sources, "runs/a/checkpoint-800=sft/a-800")
    text = to_card(found, find_row(found, "sft/a-800"))
    for part in ("MIR = 2.301 (95 % interval over samples 2.260 to 2.340)", "on 100 image-text pairs", "bfloat16",
                 "mir-plugin 0.1.0", "as in the paper", "fine-tuned from it (sft/a-800)", "MMStar 32.5 %"):  # fmt: skip
        assert part in text
    assert BIBTEX.splitlines()[0] in text


def test_another_protocol_is_not_called_the_papers(tmp_path: Path) -> None:
    result = save_mir(tmp_path / "mir.json", "runs/a", 100.0)
    changed = result.to_json().replace('"outliers": "replace"', '"outliers": "remove"')
    (tmp_path / "mir.json").write_text(changed)
    assert result.config == MirConfig()
    found = board([tmp_path])
    text = to_card(found, found.rows[0])
    assert "removed" in text
    assert "as in the paper" not in text


def test_a_partial_score_says_so(tmp_path: Path) -> None:
    results = {"mmstar": {"average,none": 0.3}}
    data = {
        "results": results,
        "model_name": "m/x",
        "config": {"limit": 8},
        "n-samples": {"mmstar": {"effective": 8, "original": 1500}},
    }
    (tmp_path / "20261101_120000_results.json").write_text(json.dumps(data))
    found = board([tmp_path])
    text = to_card(found, found.rows[0])
    assert "MMStar 30.0 % (part of the benchmark)" in text
    assert evaluations(text)["mmstar"].dataset_args["partial"] is True


def test_an_ambiguous_or_unknown_checkpoint_is_refused(sources: list[Path]) -> None:
    with pytest.raises(MirError, match="several"):
        find_row(board(sources), "checkpoint-800")
    with pytest.raises(MirError, match="a-800"):
        find_row(board(sources), "nothing")
    assert find_row(board(sources), "a-800").scores["mmstar"] == 32.45


def test_the_command_prints_the_card_alone_and_writes_nothing(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["report", *map(str, sources), "--card", "runs/a/checkpoint-800"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("## For the top of a model card")
    assert sorted(tmp_path.rglob("*")) == before
    assert CliRunner().invoke(app, ["report", "--paper", "--card", "x"]).exit_code == 1


def test_the_citation_is_that_of_the_repository() -> None:
    repository = Path(__file__).parents[2]
    entry = re.sub(r"\s+", " ", BIBTEX.partition("@software")[0]).strip()
    assert entry in re.sub(r"\s+", " ", (repository / "README.md").read_text())
