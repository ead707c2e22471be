import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.tasks.lmms_eval import measurement as lmms_eval_measurement
from mir_plugin.tasks.lmms_eval.measurement import Measurement, answer, subset

from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow

SAMPLES = SampleSet(tuple(toy_samples(4)), {"source": "toy"})


@dataclass
class Request:
    """The fields of lmms-eval's Instance that are read."""

    doc_id: int
    task_name: str = "mir"
    measurement: Measurement = field(default_factory=lambda: Measurement(SAMPLES, MirConfig()))
    padding: bool = False

    @property
    def args(self) -> tuple[Any, ...]:
        return ("id", {"do_sample": True}, self.measurement, self.doc_id)

    @property
    def metadata(self) -> dict[str, Any]:
        return {"__padding_only__": True} if self.padding else {}


def answers(requests: list[Request], asked: object = None) -> list[dict[str, Any]]:
    texts = answer(ToyAdapter(), requests, checkpoint="toy", asked=asked)  # type: ignore[arg-type]
    return [json.loads(text) for text in texts]


def direct(indices: list[int]) -> MirResult:
    return measure(ToyAdapter(), subset(SAMPLES, indices), checkpoint="toy")


def test_all_requests_share_one_measurement_over_their_documents_whatever_their_order() -> None:
    given = answers([Request(2), Request(0), Request(1), Request(3)])
    whole = direct([0, 1, 2, 3])
    assert {a["mir"] for a in given} == {whole.mir}
    assert {a["n_samples"] for a in given} == {4}
    assert ["result" in a for a in given] == [False, True, False, False]
    recorded = MirResult.from_json(json.dumps(given[1]["result"]))
    assert recorded.layers == whole.layers
    assert recorded.host == "lmms-eval"


def test_a_limit_measures_exactly_the_documents_asked_for() -> None:
    given = answers([Request(0), Request(1)])
    assert given[0]["mir"] == direct([0, 1]).mir != direct([0, 1, 2, 3]).mir
    assert given[0]["result"]["samples"]["choice"] == [0, 1]
    assert given[0]["result"]["fingerprints"]["samples"] != direct([0, 1, 2, 3]).fingerprints["samples"]


def test_padding_and_repeats_are_answered_but_never_measured() -> None:
    given = answers([Request(0), Request(1), Request(1), Request(3, padding=True)])
    assert len(given) == 4
    assert {a["n_samples"] for a in given} == {2}
    assert {a["mir"] for a in given} == {direct([0, 1]).mir}


def test_two_tasks_in_one_call_are_measured_apart() -> None:
    raw = Measurement(SAMPLES, MirConfig(normalize=False))
    given = answers([Request(0), Request(0, "mir_raw", raw), Request(1), Request(1, "mir_raw", raw)])
    assert given[0]["mir"] == given[2]["mir"] != given[1]["mir"] == given[3]["mir"]
    assert given[1]["result"]["config"]["normalize"] is False


def test_documents_of_all_processes_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process holds documents 1 and 3; both measure all four together."""

    class TwoProcesses:
        def all_gather_object(self, mine: set[tuple[str, int]]) -> list[set[tuple[str, int]]]:
            assert mine == {("mir", 0), ("mir", 2)}
            return [mine, {("mir", 1), ("mir", 3)}]

    calls: list[tuple[SampleSet, object]] = []

    def record(adapter: Any, sample_set: SampleSet, config: MirConfig, *, group: object, **_: Any) -> MirResult:
        calls.append((sample_set, group))
        return direct([0, 1, 2, 3])

    together = TwoProcesses()
    monkeypatch.setattr(lmms_eval_measurement, "current_group", lambda: together)
    monkeypatch.setattr(lmms_eval_measurement, "measure", record)
    given = answers([Request(0), Request(2), Request(2, padding=True)])
    assert calls == [(SAMPLES, together)]
    assert [a["n_samples"] for a in given] == [4, 4, 4]


def test_a_choice_of_a_choice_is_recorded_in_the_indices_of_the_whole() -> None:
    assert subset(SAMPLES.choose(3, seed=1), [0, 2]).description["choice"] == [
        SAMPLES.choose(3, seed=1).description["choice"][i] for i in (0, 2)
    ]


def test_samples_chosen_by_another_models_arguments_are_refused() -> None:
    theirs = Measurement(SAMPLES, MirConfig(), asked_of=object())
    with pytest.raises(MirError, match="chosen by arguments of object, but object is measured"):
        answers([Request(0, measurement=theirs)], asked=object())
