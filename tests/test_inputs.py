"""What reached the model: noted the same in every batch, for every sample, and compared in words."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapters.test_huggingface import SAMPLES
from adapters.tiny_models import TINY_MODELS, TinyModel

from mir_plugin.engine.inputs import ReceivedInputs
from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import IN_MEMORY
from mir_plugin.measurement.comparable import allowed_differences, inputs_of, protocol_differences
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.comparison import compare_results
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import select

from golden_data import require_golden

pytestmark = pytest.mark.slow

SAMPLE_SET = SampleSet(SAMPLES)


@functools.cache
def tiny(family: str) -> TinyModel:
    return TINY_MODELS[family]()


def received(adapter: HuggingFaceAdapter, batches: list[list[int]]) -> ReceivedInputs:
    noted = ReceivedInputs()
    for indices in batches:
        noted.add(adapter.encode([SAMPLES[index] for index in indices]), indices)
    return noted


@pytest.mark.parametrize("family", sorted(TINY_MODELS))
def test_a_sample_is_noted_alike_alone_and_in_a_padded_batch(family: str) -> None:
    adapter = from_loaded(tiny(family).model, tiny(family).processor)
    if adapter.max_batch is not None:
        pytest.skip("takes one sample at a time")
    alone = received(adapter, [[0], [1], [2]]).in_order()
    assert received(adapter, [[2, 0, 1]]).in_order() == alone
    prepared = [one.prepared for one in alone]
    assert all(prepared)
    for digests in zip(*(dataclasses.astuple(one)[:2] for one in prepared if one), strict=True):
        assert len(set(digests)) == 3, "another text and another image, and yet the same digest"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint_of("qwen2_5_vl", tmp_path_factory.mktemp("qwen") / "model")


def save_checkpoint_of(family: str, folder: Path) -> Path:
    tiny(family).model.save_pretrained(folder)
    tiny(family).processor.save_pretrained(folder)
    return folder


def loaded(folder: Path, **options: Any) -> HuggingFaceAdapter:
    adapter = load_adapter(folder, LoadOptions(device="cpu", **options))
    assert isinstance(adapter, HuggingFaceAdapter)
    return adapter


def as_a_host_loads(folder: Path, dtype: Any = "auto", **processor: Any) -> tuple[Any, Any]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, use_fast=False, **processor)


def measured(adapter: Any, name: str = "model") -> MirResult:
    return measure(adapter, SAMPLE_SET, checkpoint=name)


@functools.cache
def direct(folder: Path) -> MirResult:
    return measured(loaded(folder), str(folder))


def test_a_model_that_a_host_holds_is_its_checkpoint(folder: Path) -> None:
    adapter = from_loaded(*as_a_host_loads(folder), checkpoint=str(folder))
    assert adapter.facts["checkpoint_fingerprint"] == loaded(folder).facts["checkpoint_fingerprint"]
    assert adapter.facts["host_settings"] == {}
    ours = measured(adapter)
    assert ours.inputs == direct(folder).inputs
    assert ours.fingerprints == direct(folder).fingerprints


def test_one_changed_number_in_a_hosts_model_makes_it_another_checkpoint(folder: Path) -> None:
    model, processor = as_a_host_loads(folder)
    own = from_loaded(model, processor, checkpoint=str(folder)).facts["checkpoint_fingerprint"]
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] += 1
    changed = from_loaded(model, processor, checkpoint=str(folder)).facts["checkpoint_fingerprint"]
    assert not own.startswith(IN_MEMORY)
    assert changed.startswith(IN_MEMORY)


def test_in_memory_processor_and_config_count(folder: Path) -> None:
    model, processor = as_a_host_loads(folder)
    prints = {from_loaded(model, processor).facts["checkpoint_fingerprint"]}
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    prints.add(from_loaded(model, processor).facts["checkpoint_fingerprint"])
    model.config.vision_config.spatial_merge_size = 3
    prints.add(from_loaded(model, processor).facts["checkpoint_fingerprint"])
    assert len(prints) == 3
    from_loaded(model, processor).encode(SAMPLES[:1])  # what padding and truncation a call leaves behind is not content
    assert from_loaded(model, processor).facts["checkpoint_fingerprint"] in prints


def test_pixels_that_a_host_sets_are_not_ranked_with_the_checkpoints_own(folder: Path) -> None:
    model, processor = as_a_host_loads(folder, min_pixels=64, max_pixels=256)
    host = measured(from_loaded(model, processor, checkpoint=str(folder)))
    assert host.fingerprints["checkpoint"] == direct(folder).fingerprints["checkpoint"]
    [difference] = protocol_differences(direct(folder), host)
    assert "image processor" in difference
    assert "256" in difference
    [sentence] = allowed_differences(direct(folder), host)
    assert f"{host.inputs['n_vision_tokens']:,} vision tokens instead of" in sentence
    with pytest.raises(MirError, match=r"256.*--anyway"):
        compare_results(direct(folder), host)


def test_another_processor_of_the_checkpoints_own_is_told_and_allowed(folder: Path, tmp_path: Path) -> None:
    one = as_a_host_loads(folder)
    one[1].image_processor.image_mean = [0.0, 0.0, 0.0]
    for part in one:
        part.save_pretrained(tmp_path / "other")
    other = measured(loaded(tmp_path / "other"))
    comparison = compare_results(direct(folder), other)
    assert other.fingerprints["checkpoint"] != direct(folder).fingerprints["checkpoint"]
    assert comparison.differing == ()
    [sentence] = comparison.told
    assert all(part in sentence for part in ("image_mean", "[0.0, 0.0, 0.0]", "3 of 3 samples"))


def test_dtypes_of_one_checkpoint_are_not_two_checkpoints(folder: Path) -> None:
    lower = measured(loaded(folder, dtype="bfloat16"))
    assert lower.fingerprints["checkpoint"] == direct(folder).fingerprints["checkpoint"]
    assert lower.inputs["pixels"] == direct(folder).inputs["pixels"]  # as prepared
    for refuse in (
        lambda: compare_results(direct(folder), lower),
        lambda: select([Candidate(name, name, None, one) for name, one in (("a", direct(folder)), ("b", lower))]),
    ):
        with pytest.raises(MirError, match=r"dtype \(float32 and bfloat16\).*--anyway"):
            refuse()
    assert compare_results(direct(folder), lower, anyway=True).differing == ("dtype (float32 and bfloat16)",)


def test_autocast_is_another_dtype(folder: Path) -> None:
    adapter = loaded(folder)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = measured(adapter)
    [difference] = protocol_differences(direct(folder), under_autocast)
    assert "autocast bfloat16" in difference


def test_texts_that_a_tokenizer_cuts_are_counted_and_not_ranked_with_whole_ones(folder: Path, tmp_path: Path) -> None:
    limit = int(loaded(folder).encode(SAMPLES[1:2]).vision_mask.shape[1]) - 8
    other = Path(shutil.copytree(folder, tmp_path / "cut"))
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["truncation"] = {"direction": "Right", "max_length": limit, "strategy": "LongestFirst", "stride": 0}
    (other / "tokenizer.json").write_text(json.dumps(rules))
    result = measured(loaded(other))
    if result.inputs["n_text_tokens"] == direct(folder).inputs["n_text_tokens"]:
        pytest.skip("this version of transformers does not take truncation from tokenizer.json")
    assert result.inputs["n_cut_texts"] == 1
    [difference] = protocol_differences(direct(folder), result)
    assert "1 of 3 texts cut off" in difference


def test_a_template_with_a_date_is_said_to_have_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = as_a_host_loads(folder)
    processor.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + processor.chat_template
    today = measured(from_loaded(model, processor))
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", AnotherDay)
    tomorrow = measured(from_loaded(model, processor))
    assert today.inputs["token_ids"] != tomorrow.inputs["token_ids"]
    [difference] = protocol_differences(today, tomorrow)
    assert "01 Jan 2001" in difference
    assert "date" in difference


class AnotherDay(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime(2001, 1, 1)


def test_an_older_result_is_compared_by_what_it_knows(folder: Path) -> None:
    result = direct(folder)
    older = dataclasses.replace(result, inputs={}, place="", schema_version=1)
    assert MirResult.from_json(older.to_json()).inputs == {}
    assert protocol_differences(older, result) == allowed_differences(older, result) == []
    lower = dataclasses.replace(older, facts={**older.facts, "dtype": "bfloat16"})
    assert protocol_differences(lower, result) == ["dtype (bfloat16 and float32)"]


def test_original_checkpoints_note_what_their_config_cuts(tmp_path: Path) -> None:
    case = Path(shutil.copytree(require_golden("llava/llava_full"), tmp_path / "case"))
    config = json.loads((case / "model" / "config.json").read_text())
    options = {"vision_tower": case / "vision_tower", "device": "cpu"}
    whole = load_adapter(case / "model", LoadOptions(**options))
    a = measure(whole, SAMPLE_SET, checkpoint="c")
    length = whole.encode(SAMPLES[1:2]).vision_mask.shape[1]
    config["tokenizer_model_max_length"] = length - 5
    (case / "model" / "config.json").write_text(json.dumps(config))
    cut = load_adapter(case / "model", LoadOptions(**options))
    b = measure(cut, SAMPLE_SET, checkpoint="c")
    assert (a.inputs["n_cut_texts"], b.inputs["n_cut_texts"]) == (0, 1)
    assert a.inputs["pixels"] == b.inputs["pixels"]
    assert inputs_of(a) == "own" != inputs_of(b)
    assert "1 of 3 texts cut off" in protocol_differences(a, b)[0]
