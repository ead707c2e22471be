from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from adapters.tiny_models import TINY_MODELS, TinyModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.in_memory.host_parts import loaded_parts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    return TINY_MODELS["llava"]()


@pytest.mark.parametrize("model_name", ["model", "_model", "vlm"])
@pytest.mark.parametrize("processor_name", ["processor", "_processor", "image_processor", "_image_processor"])
def test_parts_are_found_under_the_names_that_hosts_give_them(
    tiny: TinyModel, model_name: str, processor_name: str
) -> None:
    host = SimpleNamespace(**{model_name: tiny.model, processor_name: tiny.processor})
    model, processor = loaded_parts(host)
    assert model is tiny.model
    assert processor is tiny.processor


def test_a_processor_beside_an_image_processor_of_its_own_is_preferred(tiny: TinyModel) -> None:
    host = SimpleNamespace(
        model=tiny.model, image_processor=tiny.processor.image_processor, _processor=tiny.processor, tokenizer="t"
    )
    assert loaded_parts(host)[1] is tiny.processor


def test_a_property_that_raises_is_skipped(tiny: TinyModel) -> None:
    class Host:
        _model = tiny.model
        processor = tiny.processor

        @property
        def model(self) -> Any:
            raise RuntimeError("not prepared")

    assert loaded_parts(Host())[0] is tiny.model


def test_an_api_model_is_refused_with_the_reason() -> None:
    class GPT4V:
        client = object()
        model = "gpt-4o"

    with pytest.raises(MirError, match="GPT4V cannot be measured, because no torch module"):
        loaded_parts(GPT4V())


def test_an_original_llava_triple_is_sent_to_the_adapter_of_its_format(tiny: TinyModel) -> None:
    host = SimpleNamespace(
        model=tiny.model,
        tokenizer=tiny.processor.tokenizer,
        image_processor=tiny.processor.image_processor,
        pretrained="liuhaotian/llava-v1.5-7b",
    )
    with pytest.raises(MirError, match=r"cannot be measured, because .*mir run liuhaotian/llava-v1\.5-7b"):
        loaded_parts(host)


def test_a_model_held_by_workers_is_found_in_the_first_of_them(tiny: TinyModel) -> None:
    worker = SimpleNamespace(model=tiny.model, processor=tiny.processor)
    other = SimpleNamespace(model=object(), processor=object())
    assert loaded_parts(SimpleNamespace(_workers=[worker, other])) == (tiny.model, tiny.processor)


def test_a_processor_beside_the_host_and_a_module_one_level_deeper_belong_together(tiny: TinyModel) -> None:
    host = SimpleNamespace(engine=SimpleNamespace(model=tiny.model), processor=tiny.processor)
    assert loaded_parts(host) == (tiny.model, tiny.processor)
