"""MIR is kept from the moment it is measured, and taken over by the same command only."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from mir_plugin.measurement.measure import measure
from mir_plugin.processes import ALONE
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.tasks.lmms_eval import saved
from mir_plugin.tasks.lmms_eval.measurement import Measurement
from mir_plugin.tasks.lmms_eval.saved import Command, kept

from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow
SAMPLES = SampleSet(tuple(toy_samples(4)), {"source": "toy"})
COMMAND = Command("llava_hf", "pretrained=models/toy,dtype=float32", "out")


@pytest.fixture
def measured() -> tuple[list[str], Callable[[str], MirResult]]:
    """The requests that were measured, and what measures them."""
    requests: list[str] = []

    def now(request: str) -> MirResult:
        requests.append(request)
        return measure(ToyAdapter(), SAMPLES, checkpoint="models/toy", host="lmms-eval", request=request)

    return requests, now


def test_a_request_changes_with_all_that_moves_the_number_and_not_with_the_output_folder() -> None:
    facts = ToyAdapter().facts
    same = COMMAND.request(facts, MirConfig(), SAMPLES)
    assert dataclasses.replace(COMMAND, output_path="elsewhere").request(facts, MirConfig(), SAMPLES) == same
    others = (
        dataclasses.replace(COMMAND, model="huggingface").request(facts, MirConfig(), SAMPLES),
        dataclasses.replace(COMMAND, model_args="pretrained=models/toy").request(facts, MirConfig(), SAMPLES),
        COMMAND.request({**facts, "checkpoint_fingerprint": "trained on"}, MirConfig(), SAMPLES),
        COMMAND.request({**facts, "prompt_template": "another"}, MirConfig(), SAMPLES),
        COMMAND.request(facts, MirConfig(outliers="none"), SAMPLES),
        COMMAND.request(facts, MirConfig(), SampleSet(tuple(toy_samples(3)), {})),
    )
    assert len({same, *others}) == 7


def test_the_same_request_is_measured_once_and_another_one_again(
    tmp_path: Path, measured: tuple[list[str], Callable[[str], MirResult]]
) -> None:
    requests, now = measured
    first = kept(now, "a", tmp_path / "model" / "a_mir.json", ALONE)
    again = kept(now, "a", tmp_path / "model" / "a_mir.json", ALONE)
    assert requests == ["a"]
    assert again == first
    kept(now, "b", tmp_path / "model" / "a_mir.json", ALONE)  # what is there answers another request
    kept(now, "b", None, ALONE)
    assert requests == ["a", "b", "b"]


def test_a_damaged_file_is_measured_again_and_replaced(
    tmp_path: Path, measured: tuple[list[str], Callable[[str], MirResult]]
) -> None:
    requests, now = measured
    path = tmp_path / "a_mir.json"
    path.write_text('{"mir": 1.0')
    kept(now, "a", path, ALONE)
    assert requests == ["a"]
    assert MirResult.load(path).fingerprints["request"] == "a"


def test_a_folder_that_cannot_be_written_costs_no_result(
    tmp_path: Path, measured: tuple[list[str], Callable[[str], MirResult]]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert kept(measured[1], "a", tmp_path / "file" / "a_mir.json", ALONE).n_samples == 4


def test_a_report_finds_a_saved_result_beside_what_the_host_wrote_and_counts_it_once(
    tmp_path: Path, measured: tuple[list[str], Callable[[str], MirResult]]
) -> None:
    result = kept(measured[1], "a", tmp_path / "models__toy" / "a_mir.json", ALONE)
    alone = read_sources([tmp_path])
    assert [m.mir for m in alone.measurements] == [result.mir]
    results = {
        "results": {"mir": {"mir,none": result.mir}, "mmstar": {"average,none": 0.5}},
        "configs": {"mir": {"metadata": {"mir_result": json.loads(result.to_json())}}},
        "model_name": "models/toy",
        "date": "20261121_095319",
    }
    (tmp_path / "models__toy" / "20261121_095319_results.json").write_text(json.dumps(results))
    from mir_plugin.reports.board.joint import join

    board = join(read_sources([tmp_path]))
    [row] = board.rows
    assert row.mir == result.mir
    assert not [problem for problem in board.problems if "mir" in problem.what.lower()], board.problems


def test_the_command_is_known_only_where_lmms_eval_was_called_by_one() -> None:
    assert Command.of(None) is None
    given = Namespace(model="llava_hf", model_args=None, output_path=None)
    assert Command.of(given) == Command("llava_hf", "", None)
    assert Command("llava_hf", "", None).path("a") is None


def test_an_error_leaves_a_word_on_what_was_measured_before_and_success_leaves_none(
    tmp_path: Path, measured: tuple[list[str], Callable[[str], MirResult]]
) -> None:
    path = tmp_path / "a_mir.json"
    with pytest.raises(ZeroDivisionError), saved.telling_what_is_saved():
        result = kept(measured[1], "a", path, ALONE)
        raise ZeroDivisionError
    [sentence] = saved.what_is_measured()
    assert f"{result.mir:.4f}" in sentence
    assert str(path) in sentence
    with saved.telling_what_is_saved():
        kept(measured[1], "a", path, ALONE)
    assert saved.what_is_measured() == []


def test_a_printed_request_is_short() -> None:
    many = SampleSet(tuple(toy_samples(100)), {})
    assert len(repr(Measurement(many, MirConfig()))) < 200
