from __future__ import annotations

from types import SimpleNamespace

import PIL.Image
import pytest
import torch
import transformers as tf
from adapters.tiny_models import CLIP, QFORMER, TEXT, TINY_MODELS

from mir_plugin.engine.features import layer_features
from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.introspection.decoder import find_decoder
from mir_plugin.model_adapters.introspection.image_positions import feature_rows, require_countable_features
from mir_plugin.samples.sample_set import Sample

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


def test_a_norm_of_the_embeddings_or_of_other_inputs_is_not_taken_for_the_final_one() -> None:
    model = TINY_MODELS["llava"]().model
    language_model = model.model.language_model
    language_model.embedding_norm = torch.nn.LayerNorm(16)
    language_model.per_layer_input_norm = torch.nn.LayerNorm(8)
    assert find_decoder(model).final_norm is language_model.norm


def test_a_lone_final_norm_may_have_any_name() -> None:
    model = TINY_MODELS["llava"]().model
    language_model = model.model.language_model
    language_model.embedding_norm = language_model.norm  # LFM2 calls it that
    del language_model.norm
    assert find_decoder(model).final_norm is language_model.embedding_norm


def test_two_norms_that_could_be_the_final_one_are_an_error_that_names_both() -> None:
    model = TINY_MODELS["llava"]().model
    model.model.language_model.second_norm = torch.nn.LayerNorm(16)
    with pytest.raises(MirError, match="found: norm, second_norm"):
        find_decoder(model)


def test_a_norm_before_the_layers_is_not_measured_as_the_final_one() -> None:
    tiny = TINY_MODELS["llava"]()
    language_model = tiny.model.model.language_model
    language_model.input_norm, language_model.norm = torch.nn.LayerNorm(16), torch.nn.Identity()
    language_model.embed_tokens.register_forward_hook(lambda _, __, output: language_model.input_norm(output))
    adapter = from_loaded(tiny.model, tiny.processor)
    with pytest.raises(MirError, match="LayerNorm was taken for the norm after the last decoder layer"):
        list(layer_features(adapter, [Sample("one", PIL.Image.new("RGB", (16, 16)), "some text")]))


def test_a_configuration_without_decoder_layers_is_an_error() -> None:
    model = TINY_MODELS["llava"]().model
    model.config.get_text_config = lambda **_: tf.PreTrainedConfig()
    with pytest.raises(MirError, match="num_hidden_layers"):
        find_decoder(model)


def test_a_model_without_a_part_that_reads_images_is_refused() -> None:
    with pytest.raises(MirError, match="LlamaForCausalLM cannot be measured"):
        from_loaded(tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)), TINY_MODELS["llava"]().processor)


@pytest.mark.parametrize("method", [None, "get_video_features"])
def test_a_model_without_countable_image_features_is_refused(method: str | None) -> None:
    class Tower(torch.nn.Module):
        vision = torch.nn.Linear(2, 2)

    model = Tower()
    model.vision = torch.nn.Linear(2, 2)
    if method:
        model.get_video_features = print
    with pytest.raises(MirError, match="takes videos" if method else "no get_image_features"):
        require_countable_features(model)


def test_features_are_counted_where_the_output_holds_them() -> None:
    rows = torch.zeros(2, 3, 4)
    assert feature_rows(SimpleNamespace(pooler_output=None, last_hidden_state=rows)) == 6
    assert feature_rows(SimpleNamespace(pooler_output=(rows, rows), last_hidden_state=rows)) == 12
    assert feature_rows(SimpleNamespace(deepstack_features=[(0, [rows]), (1, [rows])])) == 6
    with pytest.raises(MirError, match="SimpleNamespace"):
        feature_rows(SimpleNamespace())
