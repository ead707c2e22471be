"""Eleven tiny Hugging Face families through the adapter and the engine, against plain forward passes of the model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from adapters.tiny_models import TINY_MODELS, TinyModel

from mir_plugin.engine.features import layer_features
from mir_plugin.engine.replay import check_replay
from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.prompts.conversation import VICUNA_V1
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, TokenFeatures

pytestmark = pytest.mark.slow

FAMILIES = sorted(TINY_MODELS)

# Two kinds of rotary embedding, and features added between layers: these two cannot be replayed from one recording.
DEPTH_FIRST = {"gemma3", "qwen3_vl"}

# Features of images 60x40, 30x70 and 32x32 (width, height), by each family's published rule.
N_VISION_TOKENS = {
    "llava": [16, 16, 16],  # 16 pixels / patch 4, squared
    "qwen2_5_vl": [12, 12, 16],  # sides rounded to 8, at most 1024 pixels: 32x24, 16x48 and 32x32; patches of 8x8
    "qwen3_vl": [12, 12, 16],
    "gemma3": [4, 4, 4],  # mm_tokens_per_image
    "internvl": [20, 12, 20],  # 4 per tile: 2x2 tiles and a thumbnail, 1x2 and a thumbnail, 2x2 and a thumbnail
    "idefics3": [20, 12, 20],  # 4 per tile of 16x16, and as many for the whole image
    "paligemma": [16, 16, 16],
    "blip2": [6, 6, 6],  # query tokens
    "instructblip": [6, 6, 6],
    # 16 for the base image, then the grid of tiles cropped to the image's aspect ratio, and a newline after each row:
    # 16 + 6 * (8 + 1), 16 + 8 * (4 + 1), 16 + 8 * (8 + 1)
    "llava_next": [70, 56, 88],
    "llava_onevision": [70, 56, 88],
}


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


SAMPLES = (
    Sample("wide", picture(60, 40, 0), "A cat sat."),
    Sample("tall", picture(30, 70, 1), "On the mat, and the text goes on for longer than any sliding window."),
    Sample("square", picture(32, 32, 2), "ok"),
)


@functools.cache
def tiny(family: str) -> TinyModel:
    return TINY_MODELS[family]()


@functools.cache
def adapter(family: str) -> HuggingFaceAdapter:
    return from_loaded(tiny(family).model, tiny(family).processor)


@functools.cache
def all_samples(family: str) -> Batch:
    return adapter(family).encode(SAMPLES)


def copied(features: TokenFeatures) -> TokenFeatures:
    """The engine reuses a layer's memory for the next layer."""
    return dataclasses.replace(features, vision=features.vision.clone(), text=features.text.clone())


@functools.cache
def features_one_by_one(family: str) -> tuple[TokenFeatures, ...]:
    return tuple(copied(features) for features in layer_features(adapter(family), SAMPLES, batch_size=1))


def first_layer_input(of: HuggingFaceAdapter, sample: Sample) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = of.decoder.layers[0].register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        of.forward(of.encode([sample]))
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_tokens_are_counted_as_the_family_defines_them(family: str) -> None:
    assert all_samples(family).vision_mask.sum(dim=1).tolist() == N_VISION_TOKENS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_changes_the_decoders_input_at_the_vision_tokens_and_nowhere_else(family: str) -> None:
    sample = SAMPLES[0]
    other = Sample("other", picture(60, 40, 9), sample.text)
    mask = adapter(family).encode([sample]).vision_mask[0]
    difference = first_layer_input(adapter(family), sample) - first_layer_input(adapter(family), other)
    changed = difference.abs().sum(dim=1) > 0
    n_newlines = {"llava_next": 6, "llava_onevision": 6}.get(family, 0)  # a learned vector, the same for every image
    assert not (changed & ~mask).any()
    assert int(changed.sum()) == int(mask.sum()) - n_newlines


@pytest.mark.parametrize("family", FAMILIES)
def test_text_tokens_are_everything_after_the_last_image_position_without_padding(family: str) -> None:
    batch = all_samples(family)
    tokenizer = tiny(family).processor.tokenizer
    for sample, ids, vision, text in zip(
        SAMPLES, batch.inputs["input_ids"], batch.vision_mask, batch.text_mask, strict=True
    ):
        said = tokenizer.decode(ids[text])
        assert sample.text in said
        assert "<pad>" not in said
        assert said.rstrip().endswith(("</s>", "<|im_end|>"))
        last_image = int(vision.nonzero().max())
        assert text.nonzero().flatten().tolist() == list(range(last_image + 1, last_image + 1 + int(text.sum())))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_decoders_whose_layers_can_be_replayed_run_breadth_first(family: str) -> None:
    check = check_replay(adapter(family), SAMPLES[0])
    assert check.path == ("depth-first" if family in DEPTH_FIRST else "breadth-first"), check.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_every_layer_equal_output_hidden_states(family: str) -> None:
    features = features_one_by_one(family)
    plain = [plain_hidden_states(family, sample) for sample in SAMPLES]
    batches = [adapter(family).encode([sample]) for sample in SAMPLES]
    assert len(features) == len(plain[0]) - 1  # index 0 is the embedding layer
    for layer in features:
        vision = torch.cat([s[layer.layer][b.vision_mask] for s, b in zip(plain, batches, strict=True)])
        text = torch.cat([s[layer.layer][b.text_mask] for s, b in zip(plain, batches, strict=True)])
        torch.testing.assert_close(layer.vision, vision, rtol=0, atol=1e-6)  # same operations: float32 rounding only
        torch.testing.assert_close(layer.text, text, rtol=0, atol=1e-6)


def plain_hidden_states(family: str, sample: Sample) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        output = tiny(family).model(**adapter(family).encode([sample]).inputs, output_hidden_states=True)
    states: tuple[torch.Tensor, ...] = getattr(output, "language_model_outputs", output).hidden_states
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_the_batch_size(family: str) -> None:
    assert adapter(family).max_batch is None
    together = layer_features(adapter(family), SAMPLES, batch_size=3)
    for one, three in zip(features_one_by_one(family), together, strict=True):
        assert (one.vision_counts, one.text_counts) == (three.vision_counts, three.text_counts)
        # Values near 3; padded matrix products are summed in another order.
        torch.testing.assert_close(one.vision, three.vision, rtol=0, atol=3e-5)
        torch.testing.assert_close(one.text, three.text, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_record_the_prompt_with_a_place_for_the_text(family: str) -> None:
    facts = adapter(family).facts
    assert facts["prompt_template"].count("{text}") == 1
    assert len(facts["prompt_sha256"]) == 64
    assert facts["prompt_source"].startswith(("chat template", "fallback: "))


def test_a_beginning_written_by_the_chat_template_is_not_added_again() -> None:
    ids = adapter("gemma3").encode(SAMPLES[:1]).inputs["input_ids"][0].tolist()
    assert ids.count(tiny("gemma3").processor.tokenizer.bos_token_id) == 1


def test_llava_without_chat_template_gets_the_published_prompt() -> None:
    assert adapter("llava").facts["prompt_template"] == VICUNA_V1.answered("<image>\n", "{text}")


def test_features_of_instructblip_do_not_depend_on_what_the_assistant_says() -> None:
    other = Sample("other", SAMPLES[0].image, "Something else entirely.")
    of = adapter("instructblip")
    first, second = (first_layer_input(of, sample)[:6] for sample in (SAMPLES[0], other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_a_live_model_keeps_its_modes_parameters_gradients_and_hooks_even_after_an_error() -> None:
    fresh = TINY_MODELS["llava"]()
    model, processor = fresh.model, fresh.processor
    model.config.text_config.attention_dropout = 0.5
    model.train()
    model.model.vision_tower.eval()
    with torch.no_grad():  # transformers sets up its own recording of outputs on the first forward pass
        model(**adapter("llava").encode(SAMPLES[:1]).inputs)
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    before = state_of(model)
    live = from_loaded(model, processor)
    list(layer_features(live, SAMPLES[:1]))
    live.encode(SAMPLES)
    live.text_token_losses(live.encode(SAMPLES[:1]))
    live.generate([Prompt("What?", (SAMPLES[0].open_image(),))], max_new_tokens=2)
    live.loglikelihood([Prompt("What?", (SAMPLES[0].open_image(),))], ["This."])
    batch = live.encode(SAMPLES[:1])
    broken = dataclasses.replace(batch, inputs={**batch.inputs, "pixel_values": torch.zeros(1, 5, 2, 2)})
    with pytest.raises(MirError, match="cannot run on what its processor made"):
        live.forward(broken)
    assert state_of(model) == before
    assert tokenizer.padding_side == "left"


def state_of(model: torch.nn.Module) -> list[Any]:
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    ] + [(name, float(p.detach().sum()), p.requires_grad, p.grad) for name, p in model.named_parameters()]


def test_dropout_of_a_model_in_training_does_not_reach_the_features() -> None:
    model = TINY_MODELS["llava"]().model
    expected = [features.text.clone() for features in layer_features(adapter("llava"), SAMPLES[:1])]
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    live = from_loaded(model.train(), tiny("llava").processor)
    for features, text in zip(layer_features(live, SAMPLES[:1]), expected, strict=True):
        assert torch.equal(features.text, text)


def test_a_wrapped_model_is_measured_through_its_wrapper() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    wrapped = from_loaded(Wrapper(tiny("llava").model), tiny("llava").processor)
    assert wrapped.facts["checkpoint_fingerprint"] == adapter("llava").facts["checkpoint_fingerprint"]


def test_a_processor_of_another_model_is_an_error_with_both_counts() -> None:
    processor = TINY_MODELS["llava"]().processor
    processor.patch_size = 8
    wrong = from_loaded(tiny("llava").model, processor)
    with pytest.raises(MirError, match="16 image feature rows for 4 image positions"):
        wrong.forward(wrong.encode(SAMPLES[:1]))


def test_a_model_whose_image_features_cannot_be_counted_during_the_forward_pass_is_an_error() -> None:
    model = TINY_MODELS["llava"]().model
    uncounted = model.model.get_image_features
    batch = adapter("llava").encode(SAMPLES[:1])

    class Bypass(torch.nn.Module):
        get_image_features = uncounted

    model.bypass = Bypass()
    with pytest.raises(MirError, match="did not call its get_image_features"):
        from_loaded(model, tiny("llava").processor).forward(batch)


def test_an_image_that_the_processor_refuses_is_an_error_naming_the_sample() -> None:
    with pytest.raises(MirError, match=r"sample thread: .*cannot encode .*mean must have"):
        broken = TINY_MODELS["qwen2_5_vl"]()
        broken.processor.image_processor.image_mean = [0.5]
        from_loaded(broken.model, broken.processor).encode([Sample("thread", picture(60, 40, 0), "text")])


def test_an_offloaded_model_is_refused() -> None:
    with pytest.raises(MirError, match="is offloaded"):
        from_loaded(TINY_MODELS["llava"]().model.to("meta"), tiny("llava").processor)


@pytest.mark.parametrize("mark", ["ds_id", "device_mesh"])  # of ZeRO stage 3, and of FSDP 2 and tensor parallelism
def test_a_partitioned_model_is_refused(mark: str) -> None:
    model = TINY_MODELS["llava"]().model
    setattr(next(model.parameters()), mark, 1)
    with pytest.raises(MirError, match="is partitioned between processes"):
        from_loaded(model, tiny("llava").processor)


def test_no_logits_are_computed_that_nobody_reads() -> None:
    seen = []
    hook = tiny("llava").model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[1]))
    adapter("llava").forward(adapter("llava").encode(SAMPLES[:1]))
    hook.remove()
    assert seen == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sample bad: its text is empty"),
        (" \n", "sample bad: its text is empty"),
        ("an <image> token", "sample bad: its text contains '<image>'"),
        ("x" * 2000, "sample bad: prompt, image and text have 2.* context is 1024"),
    ],
)
def test_a_text_that_cannot_be_measured_is_an_error_naming_the_sample(text: str, message: str) -> None:
    with pytest.raises(MirError, match=message):
        adapter("llava").encode([Sample("bad", picture(8, 8, 0), text)])


def test_a_model_type_not_proven_in_batches_is_measured_one_sample_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mir_plugin.model_adapters.huggingface.adapter.PROVEN_IN_BATCHES", frozenset())
    one_by_one = from_loaded(tiny("llava").model, tiny("llava").processor)
    assert one_by_one.max_batch == 1
    with pytest.raises(MirError, match="one sample at a time"):
        one_by_one.encode(SAMPLES)


def test_a_chat_template_that_drops_part_of_the_text_is_an_error() -> None:
    processor = TINY_MODELS["llava_next"]().processor
    processor.chat_template = processor.chat_template.replace("c['text']", "c['text'][:4]")
    with pytest.raises(MirError, match="changes the assistant's text"):
        from_loaded(tiny("llava_next").model, processor).encode(SAMPLES)


def test_layers_of_two_kinds_are_told_apart_even_if_the_first_sample_is_shorter_than_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_config = transformers.Qwen2Config
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    mixed = functools.partial(plain_config, use_sliding_window=True, sliding_window=64, layer_types=kinds)
    monkeypatch.setattr(transformers, "Qwen2Config", mixed)
    internvl = TINY_MODELS["internvl"]()
    of = from_loaded(internvl.model, internvl.processor)
    samples = (SAMPLES[2], Sample("long", SAMPLES[0].image, "a long text " * 20))
    long = of.encode(samples[1:])
    with torch.no_grad():
        plain = internvl.model(**long.inputs, output_hidden_states=True).hidden_states
    for layer in layer_features(of, samples):
        text = layer.text[layer.text_counts[0] :]
        torch.testing.assert_close(text, plain[layer.layer][long.text_mask], rtol=0, atol=1e-6)
