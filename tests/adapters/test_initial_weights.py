"""Weights that no checkpoint gave a model: seen however it was loaded, and no alarm where somebody filled them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from adapters.tiny_models import TEXT, TINY_MODELS, TinyModel, qwen3_vl_moe
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.in_memory import initial_weights
from mir_plugin.model_adapters.in_memory.host_parts import adapter_for
from mir_plugin.model_adapters.in_memory.initial_weights import (
    absent_from_checkpoint,
    architecture_conflict,
    initial_parameters,
    observe_loading,
    require_loaded_weights,
    warn_of_initial_parts,
)

pytestmark = pytest.mark.slow
PROJECTOR = "model.multi_modal_projector.linear_1.weight"


@contextmanager
def loading_observed() -> Iterator[None]:
    """Loading is observed, and transformers as it was afterwards."""
    base = transformers.PreTrainedModel
    original = base.__dict__["from_pretrained"]
    observe_loading(transformers.modeling_utils)
    try:
        yield
    finally:
        base.from_pretrained = original  # type: ignore[method-assign]


@pytest.fixture(scope="module", autouse=True)
def observed() -> Iterator[None]:
    with loading_observed():
        yield


def saved(tiny: TinyModel, folder: Path, without: str = "") -> Path:
    """A checkpoint of a tiny model, with or without the keys that contain a text."""
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    if without:
        weights = load_file(folder / "model.safetensors")
        kept = {key: value for key, value in weights.items() if without not in key}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY_MODELS["llava"](), tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(qwen3_vl_moe(), tmp_path_factory.mktemp("qwen3-vl-moe"))


@pytest.fixture(scope="module")
def without_projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY_MODELS["llava"](), tmp_path_factory.mktemp("partial"), without="multi_modal_projector")


def load_llava(folder: Path, **options: Any) -> Any:
    return transformers.LlavaForConditionalGeneration.from_pretrained(folder, **options)


def test_a_dense_class_on_a_mixture_of_experts_is_refused_with_both_classes_and_the_parameters(moe: Path) -> None:
    host = SimpleNamespace(
        model=transformers.Qwen3VLForConditionalGeneration.from_pretrained(moe),
        processor=transformers.AutoProcessor.from_pretrained(moe),
    )
    with pytest.raises(MirError) as error:
        adapter_for(host)
    for part in (
        str(moe),
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "9 parameters",
        "model.language_model.layers.0.mlp.gate_proj.weight",
    ):
        assert part in str(error.value)


def test_the_class_alone_tells_where_no_parameter_is_missing(llava: Path) -> None:
    model = load_llava(llava)
    model.config.architectures = ["LlavaNextForConditionalGeneration"]
    assert "LlavaNextForConditionalGeneration" in architecture_conflict(model)
    with pytest.raises(MirError, match="LlavaForConditionalGeneration was loaded"):
        require_loaded_weights(model, "x")


@pytest.mark.parametrize("architectures", [None, [], ["LlavaLlamaForCausalLM"], ["LlavaForConditionalGeneration"]])
def test_no_class_conflict_without_two_classes_that_transformers_knows(llava: Path, architectures: Any) -> None:
    model = load_llava(llava)
    model.config.architectures = architectures
    assert architecture_conflict(model) == ""


def test_a_base_model_and_a_derived_class_are_of_the_same_architecture(llava: Path) -> None:
    class Derived(transformers.LlavaForConditionalGeneration):
        pass

    base = transformers.AutoModel.from_pretrained(llava)
    assert type(base).__name__ == "LlavaModel"
    require_loaded_weights(base, "base")
    assert architecture_conflict(Derived.from_pretrained(llava)) == ""


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_no_family_loaded_by_its_own_class_raises_an_alarm(name: str, tmp_path: Path) -> None:
    folder = saved(TINY_MODELS[name](), tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    require_loaded_weights(model, name)
    assert absent_from_checkpoint(model) == []


def test_missing_weights_are_noted_until_somebody_fills_them(without_projector: Path) -> None:
    model = load_llava(without_projector, dtype=torch.float32)
    names = initial_parameters(model)
    assert len(names) == 4
    assert PROJECTOR in names
    assert len(initial_parameters(model.to(torch.bfloat16))) == 4  # a cast fills nothing
    with torch.no_grad():
        model.get_parameter(PROJECTOR).add_(1.0)  # as load_state_dict would, into the same parameter
    assert PROJECTOR not in initial_parameters(model)
    model.model.multi_modal_projector = TINY_MODELS["llava"]().model.model.multi_modal_projector
    assert initial_parameters(model) == []
    require_loaded_weights(model, "x")


def test_shapes_that_do_not_fit_are_noted_like_missing_weights(llava: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llava)
    config.text_config.intermediate_size *= 2
    model = load_llava(llava, config=config, ignore_mismatched_sizes=True)
    assert len(initial_parameters(model)) == 3 * TEXT["num_hidden_layers"]  # type: ignore[operator]


def test_lora_around_a_model_hides_nothing_and_adds_nothing(llava: Path, without_projector: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj", "linear_1"])
    whole = get_peft_model(load_llava(llava), lora)
    assert initial_parameters(whole) == []
    partial = get_peft_model(load_llava(without_projector), lora)
    assert len(initial_parameters(partial)) == 4


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    tiny = TINY_MODELS["llava"]()
    tiny.model.config.tie_word_embeddings = tiny.model.config.text_config.tie_word_embeddings = True
    tiny.model.tie_weights()
    folder = saved(tiny, tmp_path)
    assert not any("lm_head" in key for key in load_file(folder / "model.safetensors"))
    model = load_llava(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    require_loaded_weights(model, "tied")


def test_callers_get_what_they_ask_of_an_observed_loading(without_projector: Path) -> None:
    model, report = load_llava(without_projector, output_loading_info=True)
    assert isinstance(model, transformers.LlavaForConditionalGeneration)
    assert PROJECTOR in report["missing_keys"]
    assert isinstance(load_llava(without_projector), transformers.LlavaForConditionalGeneration)


def test_a_load_without_weights_tells_what_an_unobserved_one_missed(without_projector: Path, moe: Path) -> None:
    assert PROJECTOR in absent_from_checkpoint(load_llava(without_projector))
    dense = transformers.Qwen3VLForConditionalGeneration.from_pretrained(moe)
    assert len(absent_from_checkpoint(dense)) == 9


def test_where_no_checkpoint_can_be_read_nothing_is_said(llava: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llava)
    config.name_or_path = ""
    assert absent_from_checkpoint(transformers.LlavaForConditionalGeneration(config)) == []
    gone = load_llava(llava)
    gone.config.name_or_path = gone.name_or_path = "no/such-folder"
    assert absent_from_checkpoint(gone) == []


def test_in_a_training_frozen_parts_without_weights_are_a_warning_and_trained_ones_are_not(
    without_projector: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=initial_weights.__name__):
        warn_of_initial_parts(load_llava(without_projector))  # everything is trained
        frozen = load_llava(without_projector).requires_grad_(False)
        warn_of_initial_parts(frozen)
        warn_of_initial_parts(frozen)  # once a model
    [record] = [record for record in caplog.records if record.name == initial_weights.__name__]
    assert PROJECTOR in record.getMessage()
    assert str(without_projector) in record.getMessage()
