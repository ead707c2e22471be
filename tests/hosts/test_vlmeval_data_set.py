"""MIR as a data set, answers taken over or not, and our checkpoints as a model; all without VLMEvalKit."""

from __future__ import annotations

import functools
import json
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.prompts.generation import Prompt, PromptTooLong
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import Sample
from mir_plugin.tasks.vlmevalkit import measurement as vlmeval_measurement
from mir_plugin.tasks.vlmevalkit.data_set import MirDataSet, prediction_of
from mir_plugin.tasks.vlmevalkit.measurement import Inference, measured
from mir_plugin.tasks.vlmevalkit.model import CheckpointModel, multiple_choice_question, prompt_of
from mir_plugin.tasks.vlmevalkit.model_settings import settings_fingerprint
from mir_plugin.types import Batch

from golden_data import require_golden
from toy import ToyAdapter

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIR_SAMPLES", "embedded")
    monkeypatch.setenv("MIR_N_SAMPLES", "3")


def toy_host(calls: list[dict[str, Any]] | None = None) -> ModuleType:
    """Stands for vlmeval.inference: builds a model whose module is the toy."""

    def build(**options: Any) -> Any:
        if calls is not None:
            calls.append({"options": options, "WORLD_SIZE": os.environ.get("WORLD_SIZE")})
        return SimpleNamespace(model_path="toys/one")

    return SimpleNamespace(supported_VLM={"toy": build, "Qwen2-VL-toy": build})  # type: ignore[return-value]


class PictureToy(ToyAdapter):
    """The toy, for real pictures."""

    def encode(self, samples: list[Sample]) -> Batch:
        return super().encode([Sample(s.sample_id, s.open_image().tobytes(), s.text[:40]) for s in samples])


@pytest.fixture
def toy_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlmeval_measurement, "adapter_for", lambda model: PictureToy())


def inference(folder: Path, data_set: MirDataSet, model: Any = "toy", **more: Any) -> Inference:
    return Inference(model, "toy", folder, data_set, str(folder / "01_MIR.pkl"), **more)


def answers(folder: Path) -> dict[str, str]:
    found: dict[str, str] = pickle.loads((folder / "01_MIR.pkl").read_bytes())
    return found


def test_the_one_row_is_named_by_samples_and_protocol() -> None:
    same, again = MirDataSet(n_samples=3), MirDataSet()
    others = [MirDataSet(n_samples=4), MirDataSet(seed=1), MirDataSet(outliers="remove"), MirDataSet(normalize=False)]
    assert list(same.data["index"]) == [same.index] == [again.index]
    assert len({same.index, *(other.index for other in others)}) == 5


def test_options_of_the_data_config_win_and_name_their_place() -> None:
    assert MirDataSet(n_samples=2).sample_set.description["options"]["n_samples"] == "data config"
    with pytest.raises(MirError, match=r"n_samples is 'many' \(data config\)"):
        MirDataSet(n_samples="many")  # type: ignore[arg-type]


def test_another_name_than_mir_is_refused() -> None:
    with pytest.raises(MirError, match="'MIR_two'"):
        MirDataSet("MIR_two")


def test_missing_samples_are_an_error_of_the_measurement_and_not_of_the_data_set(tmp_path: Path) -> None:
    data_set = MirDataSet(samples=f"folders:{tmp_path / 'a'},{tmp_path / 'b'}")
    with pytest.raises(MirError, match=str(tmp_path)):
        measured(inference(tmp_path, data_set), toy_host())


def test_nothing_can_be_asked_through_an_api() -> None:
    with pytest.raises(MirError, match="cannot be measured in this mode, because"):
        MirDataSet().build_prompt(None)


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv", ".json"])
def test_every_prediction_format_of_the_host_is_scored(tmp_path: Path, toy_parts: None, suffix: str) -> None:
    data_set = MirDataSet()
    model = measured(inference(tmp_path, data_set), toy_host())
    assert model.model_path == "toys/one"
    table = data_set.data.assign(prediction=[answers(tmp_path)[data_set.index]])
    path = tmp_path / f"toy_MIR{suffix}"
    if suffix == ".xlsx":
        table.to_excel(path, index=False)
    elif suffix == ".tsv":
        table.to_csv(path, sep="\t", index=False)
    else:
        path.write_text(json.dumps(table.to_dict("records")))
    whole = MirResult.load(tmp_path / "toy_MIR_mir.json")
    assert whole.checkpoint == "toys/one"
    scores = data_set.evaluate(str(path), nproc=4)
    assert scores["mir"] == whole.mir
    assert scores["mir_stderr"] == whole.uncertainty["standard_error"]
    [row] = pd.read_csv(tmp_path / "toy_MIR_score.csv").to_dict("records")
    assert (row["mir"], row["mir_published_upper"]) == pytest.approx((whole.mir, whole.mir_published_upper), rel=1e-12)
    assert row["protocol"] == whole.fingerprints["protocol"]


def test_a_prediction_of_other_samples_is_not_scored(tmp_path: Path) -> None:
    MirDataSet(n_samples=4).data.assign(prediction="{}").to_excel(tmp_path / "toy_MIR.xlsx")
    with pytest.raises(MirError, match="holds no measurement 'mir-"):
        MirDataSet().evaluate(str(tmp_path / "toy_MIR.xlsx"))


def test_an_answer_taken_over_loads_no_model_and_one_of_other_samples_is_measured_again(
    tmp_path: Path, toy_parts: None
) -> None:
    data_set, other = MirDataSet(), MirDataSet(n_samples=4)
    earlier = tmp_path / "toy_MIR_PREV.pkl"
    built: list[dict[str, Any]] = []
    earlier.write_bytes(pickle.dumps({data_set.index: "earlier"}))
    assert measured(inference(tmp_path, data_set), toy_host(built)) == "toy"
    assert (answers(tmp_path), built) == ({data_set.index: "earlier"}, [])
    measured(inference(tmp_path, other), toy_host(built))
    assert len(built) == 1
    assert json.loads(answers(tmp_path)[other.index])["n_samples"] == 4


def test_the_model_is_built_as_the_host_builds_it(
    tmp_path: Path, toy_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    built: list[dict[str, Any]] = []
    measured(inference(tmp_path, MirDataSet()), toy_host(built))
    data_set = MirDataSet(n_samples=4)
    call = Inference("Qwen2-VL-toy", "Qwen2-VL-toy", tmp_path, data_set, str(tmp_path / "01_MIR.pkl"), use_vllm=True)
    measured(call, toy_host(built))
    assert built == [{"options": {}, "WORLD_SIZE": None}, {"options": {"use_vllm": True}, "WORLD_SIZE": None}]
    assert os.environ["WORLD_SIZE"] == "1"


def test_a_model_that_is_loaded_already_is_measured_and_returned(tmp_path: Path, toy_parts: None) -> None:
    loaded, built = SimpleNamespace(), list[dict[str, Any]]()
    assert measured(inference(tmp_path, MirDataSet(), model=loaded), toy_host(built)) is loaded
    assert built == []
    assert MirResult.load(tmp_path / "toy_MIR_mir.json").checkpoint == "toy"


def test_the_prediction_fits_a_cell_of_a_spreadsheet(tmp_path: Path, toy_parts: None) -> None:
    measured(inference(tmp_path, MirDataSet()), toy_host())
    assert len(prediction_of(MirResult.load(tmp_path / "toy_MIR_mir.json"))) < 1000


def built_with(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> None:
    """VLMEvalKit's table of models, with these arguments for the toy."""
    table = {"toy": functools.partial(dict, **arguments)}
    monkeypatch.setitem(sys.modules, "vlmeval.config", SimpleNamespace(supported_VLM=table))  # type: ignore[arg-type]


def given_config(monkeypatch: pytest.MonkeyPatch, folder: Path, **arguments: Any) -> None:
    """The same in a --config file."""
    path = folder / "config.json"
    path.write_text(json.dumps({"model": {"toy": {"class": "Toy", **arguments}}, "data": {}}))
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", str(path)])


@pytest.mark.parametrize("by_config", [False, True])
def test_an_answer_of_a_model_with_other_arguments_is_not_taken_over(
    tmp_path: Path, toy_parts: None, monkeypatch: pytest.MonkeyPatch, by_config: bool
) -> None:
    def state(**arguments: Any) -> None:
        if by_config:
            given_config(monkeypatch, tmp_path, **arguments)
        else:
            built_with(monkeypatch, **arguments)

    data_set, calls = MirDataSet(), list[dict[str, Any]]()
    state(min_pixels=784, verbose=False)
    measured(inference(tmp_path, data_set), toy_host(calls))
    (tmp_path / "toy_MIR_PREV.pkl").write_bytes((tmp_path / "01_MIR.pkl").read_bytes())
    table = data_set.data.assign(prediction=[answers(tmp_path)[data_set.index]])
    table.to_excel(tmp_path / "toy_MIR.xlsx", index=False)

    measured(inference(tmp_path, data_set), toy_host(calls))
    assert len(calls) == 1, "the same arguments"
    assert data_set.evaluate(str(tmp_path / "toy_MIR.xlsx"))["n_samples"] == 3
    state(min_pixels=3136, verbose=False)
    with pytest.raises(MirError, match="other arguments"):
        data_set.evaluate(str(tmp_path / "toy_MIR.xlsx"))
    measured(inference(tmp_path, data_set), toy_host(calls))
    assert len(calls) == 2


def test_a_flag_that_changes_no_answer_is_no_other_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    built_with(monkeypatch, min_pixels=784, verbose=False)
    before = settings_fingerprint("toy")
    built_with(monkeypatch, min_pixels=784, verbose=True)
    assert before == settings_fingerprint("toy") is not None
    assert settings_fingerprint("another") is None


def test_multiple_choice_is_asked_in_the_words_of_the_hosts_llava() -> None:
    line = {"question": "Which?", "hint": float("nan"), "A": "red", "B": "green", "C": float("nan"), "answer": "A"}
    assert multiple_choice_question(line) == (
        "Which?\nA. red\nB. green\nAnswer with the option's letter from the given choices directly."
    )
    assert multiple_choice_question({**line, "hint": "Look."}).startswith("Look.\nWhich?\nA. red")
    assert multiple_choice_question({"question": "哪个？", "A": "红"}).endswith("\n请直接回答选项字母。")
    assert multiple_choice_question({"question": "Which?"}) == "Which?\nAnswer the question directly."


def test_images_stand_in_front_unless_they_stand_between_texts(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (4, 4)).save(path)
    image, text = {"type": "image", "value": str(path)}, {"type": "text", "value": "Which?"}
    assert prompt_of([image, image, text]).text == "Which?"
    assert [i.mode for i in prompt_of([image, image, text]).images] == ["RGB", "RGB"]
    assert prompt_of([text, image, text]).text == "Which?<image>Which?"
    assert prompt_of([image]).text == ""


@pytest.mark.parametrize("name", ["llava/llava_moca", "sharegpt4v/share4v_projector", "mini_gemini/mgm_full"])
def test_every_original_format_answers_the_hosts_messages(name: str) -> None:
    case = require_golden(name)
    model = CheckpointModel(str(case / "model"), max_new_tokens="6", device="cpu")
    path = sorted((case / "samples").glob("*.png"))[0]
    message = [{"type": "image", "value": str(path)}, {"type": "text", "value": "Which?"}]
    answer = model.generate_inner(message, "MMStar")
    assert answer.strip()
    with Image.open(path) as image:
        [direct] = model.adapter.generate([Prompt("<image>\nWhich?", (image.convert("RGB"),))], max_new_tokens=6)  # type: ignore[attr-defined]
    assert answer == direct


def test_unknown_model_arguments_are_named_before_anything_is_loaded() -> None:
    with pytest.raises(MirError, match="unknown model argument 'vison_tower'; known: pretrained, base, base_llm"):
        CheckpointModel("nowhere", vison_tower="x")
    with pytest.raises(MirError, match="no checkpoint given"):
        CheckpointModel()


def test_a_message_that_is_too_long_is_answered_with_nothing_counted_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Short:
        family = "short"

        def generate(self, prompts: Any, **_: Any) -> list[str]:
            if len(prompts[0].text) > 3:
                raise PromptTooLong("a prompt has 9 tokens.")
            return ["yes"]

        def loglikelihood(self, prompts: Any, continuations: Any) -> list[tuple[float, bool]]:
            raise NotImplementedError

    monkeypatch.setattr("mir_plugin.tasks.vlmevalkit.model.load_adapter", lambda *_: Short())
    model = CheckpointModel("short")
    texts = ("Why", "Why not?", "How", "How much?")
    answers = [model.generate_inner([{"type": "text", "value": text}], "MMStar") for text in texts]
    assert answers == ["yes", "", "yes", ""]
    assert model.n_unanswered == 2
    assert "MMStar" in caplog.text and "so far: 2" in caplog.text
