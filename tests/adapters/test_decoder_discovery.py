from __future__ import annotations

import pytest
import torch
import transformers as tf
from adapters.tiny_models import CLIP, QFORMER, TEXT, TINY_MODELS

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.introspection.decoder import find_decoder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_a_vision_tower_as_deep_as_the_language_model_is_not_mistaken_for_it(family: str) -> None:
    model = TINY_MODELS[family]().model
    towers = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 2]
    for tower in towers:
        tower.append(tower[0])
    decoder = find_decoder(model)
    assert len(decoder.layers) == 3
    assert type(decoder.layers[0]).__name__ in ("LlamaDecoderLayer", "OPTDecoderLayer")


def test_experts_as_many_as_layers_are_not_mistaken_for_layers() -> None:
    model = TINY_MODELS["llava"]().model
    for layer in model.model.language_model.layers:
        layer.mlp.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    assert type(find_decoder(model).layers[0]).__name__ == "LlamaDecoderLayer"


def test_two_stacks_of_the_same_depth_are_an_error_that_names_both() -> None:
    model = TINY_MODELS["llava"]().model
    model.draft = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(MirError, match=r"found: model\.language_model\.layers, draft|draft, model"):
        find_decoder(model)


def test_a_decoder_without_final_norm_is_an_error() -> None:
    model = TINY_MODELS["llava"]().model
    model.model.language_model.norm = torch.nn.Identity()
    with pytest.raises(MirError, match=r"one final norm beside .*found: none"):
        find_decoder(model)


def test_an_encoder_decoder_language_model_is_refused() -> None:
    text = tf.T5Config(vocab_size=99, d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2)
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**CLIP, image_size=16, patch_size=4),
        qformer_config=tf.Blip2QFormerConfig(**QFORMER),
        text_config=text,
        num_query_tokens=6,
    )
    with pytest.raises(MirError, match="encoder-decoder language model"):
        find_decoder(tf.Blip2ForConditionalGeneration(config))


def test_a_model_without_countable_image_features_is_refused() -> None:
    with pytest.raises(MirError, match="no get_image_features"):
        from_loaded(tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)), TINY_MODELS["llava"]().processor)
