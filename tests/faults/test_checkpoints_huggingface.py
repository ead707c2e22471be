"""Damaged and contradictory checkpoints in the Hugging Face format: what transformers takes silently, or dies of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.battery import Bench, Case, Refused, Right, each
from faults.damage import (
    MICRO,
    Damage,
    all_of,
    config,
    cut,
    damaged,
    one_value,
    removed,
    renamed,
    same_as,
    tensors,
    undamaged,
    without,
    written,
)
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.slow

CONFIG, WEIGHTS = "model/config.json", "model/model.safetensors"
TOKENIZER, PROCESSOR = "model/tokenizer.json", "model/processor_config.json"
IMAGE_PROCESSOR = "model/preprocessor_config.json"
TEMPLATE, TOKENIZER_CONFIG = "model/chat_template.jinja", "model/tokenizer_config.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def as_dtype(dtype: torch.dtype) -> Damage:
    return tensors(WEIGHTS, lambda state: state.update({Q_PROJ: state[Q_PROJ].to(dtype)}))


def cut_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "model/pytorch_model.bin")
    all_of(removed(WEIGHTS), cut("model/pytorch_model.bin", 0.5))(folder)


def moca_in_one_layer(state: dict[str, Tensor]) -> None:
    for name in ("scale", "shift"):
        state[f"language_model.model.layers.0.modality_layernorm.{name}"] = torch.ones(64)


def case(name: str, done: str, damage: Damage, *words: str, options: tuple[str, ...] = (), full: bool = False) -> Case:
    return Case(name, done, damaged(MICRO, damage, *options), Refused(*words), full=full)


def unharmed(name: str, done: str, damage: Damage) -> Case:
    return Case(name, done, damaged(MICRO, damage), same_as(MICRO))


def config_case(name: str, done: str, *words: str, full: bool = False, **fields: Any) -> Case:
    return case(name, done, config(CONFIG, **fields), *words, full=full)


def another_number(value: object, _: Bench) -> str:
    assert isinstance(value, float)
    assert value == pytest.approx(undamaged(MICRO), abs=0.02)
    return f"MIR {value:.4f}: that of the weights as they are stored"


CASES = (
    case("weights empty", "model.safetensors has no bytes", cut(WEIGHTS, 0), "model.safetensors", "Copy or download"),
    case("weights cut", "model.safetensors ends in the middle", cut(WEIGHTS, 0.5), "model.safetensors", "Copy or down"),
    case("pickle cut", "pytorch_model.bin ends in the middle", cut_pickle, "pytorch_model.bin", "Copy or download"),
    case(
        "nan in the decoder",
        "one number of a decoder weight is NaN",
        tensors(WEIGHTS, one_value(Q_PROJ, float("nan"))),
        "layers.0.self_attn.q_proj.weight",
        "NaN",
        "damaged or its training diverged",
    ),
    case(
        "beyond float16",
        "a weight of 1e6 and --dtype float16",
        tensors(WEIGHTS, one_value(Q_PROJ, 1e6)),
        "layers.0.self_attn.q_proj.weight",
        "float16",
        "--dtype float32",
        options=("--dtype", "float16"),
    ),
    case(
        "int8",
        "a weight is stored as 8-bit integers, nothing says how they were quantised",
        as_dtype(torch.int8),
        Q_PROJ,
        "int8",
        "quantization_config",
    ),
    case("float8", "a weight is stored in 8-bit floating point", as_dtype(torch.float8_e4m3fn), Q_PROJ, "F8_E4M3"),
    Case(
        "bfloat16 among float32",
        "one weight is stored as bfloat16",
        damaged(MICRO, as_dtype(torch.bfloat16)),
        Right(another_number),
    ),
    case(
        "key missing",
        "one decoder weight is missing",
        tensors(WEIGHTS, without(Q_PROJ)),
        "layers.0.self_attn.q_proj.weight",
        "would be random",
        "config.json",
    ),
    case(
        "final norm renamed",
        "the weight of the final norm has another name",
        tensors(WEIGHTS, renamed("language_model.model.norm.", "language_model.model.normal.")),
        "norm.weight",
        "belong together",
    ),
    config_case(
        "layer missing",
        "config.json says seven decoder layers, six are stored",
        "layers.6.",
        "would be random",
        "config.json",
        text_config__num_hidden_layers=7,
    ),
    config_case(
        "layer too many",
        "config.json says five decoder layers, six are stored",
        "layers.5.",
        "left out silently",
        "config.json",
        text_config__num_hidden_layers=5,
    ),
    config_case(
        "a billion layers",
        "config.json says 10^9 decoder layers",
        "config.json",
        "1000000000",
        "own config.json",
        text_config__num_hidden_layers=10**9,
    ),
    config_case(
        "text_config missing",
        "config.json has no text_config: transformers would make up 7 billion parameters",
        "config.json",
        "parameters",
        "random numbers",
        "text_config",
        text_config=...,
    ),
    config_case(
        "vision_config missing",
        "config.json has no vision_config: transformers would make up 300 million parameters",
        "config.json",
        "parameters",
        "random numbers",
        "vision_config",
        vision_config=...,
    ),
    config_case(
        "layers in words",
        "config.json says num_hidden_layers: 'six'",
        "num_hidden_layers",
        "config.json",
        text_config__num_hidden_layers="six",
    ),
    config_case(
        "no heads", "config.json says no attention heads", "config.json", "copy", text_config__num_attention_heads=0
    ),
    config_case(
        "width no multiple",
        "config.json says a width of 65 for four heads",
        "65",
        "config.json",
        text_config__hidden_size=65,
    ),
    config_case(
        "activation unknown",
        "config.json names an activation that does not exist",
        "banana",
        "config.json",
        text_config__hidden_act="banana",
    ),
    config_case("dtype unknown", "config.json says dtype banana", "banana", "config.json", dtype="banana"),
    config_case(
        "text_config a list", "text_config is a list", "text_config", "config.json", text_config=[1], full=True
    ),
    config_case(
        "vocabulary smaller",
        "config.json says a vocabulary of 700 for 770 embeddings",
        "embed_tokens.weight",
        "another shape",
        "config.json",
        text_config__vocab_size=700,
    ),
    config_case(
        "image larger",
        "config.json says images of 80 pixels, the tower was trained on 40",
        "position_embedding",
        "another shape",
        "config.json",
        vision_config__image_size=80,
    ),
    config_case("patch of zero", "config.json says patches of 0 pixels", "config.json", vision_config__patch_size=0),
    config_case(
        "tower layer beyond",
        "config.json takes the features of tower layer -9, it has 3",
        "03.png",
        "config.json",
        vision_feature_layer=-9,
    ),
    config_case(
        "class token kept",
        "config.json keeps the class token, the processor makes no room for it",
        "26 image feature rows for 25",
        "do not belong together",
        vision_feature_select_strategy="full",
    ),
    config_case(
        "image token another",
        "config.json names another id as image token",
        "03.png",
        "image token (id 5)",
        "disagree",
        image_token_index=5,
    ),
    config_case(
        "context of ten",
        "config.json says a context of 10 positions",
        "03.txt",
        "context is 10",
        "Shorten",
        text_config__max_position_embeddings=10,
    ),
    config_case(
        "unknown model type",
        "config.json says model_type bert",
        "model",
        "no known family",
        "--family",
        model_type="bert",
    ),
    config_case(
        "neighbouring model type",
        "config.json says llava_next, the weights are llava's",
        "image_newline",
        "config.json",
        model_type="llava_next",
    ),
    config_case(
        "moca without weights",
        "config.json says use_moca, no such weights are stored",
        "config.json",
        "use_moca",
        "modality_layernorm",
        use_moca=True,
    ),
    case(
        "moca in one layer",
        "MoCa's weights are stored for one of six layers",
        tensors(WEIGHTS, moca_in_one_layer),
        "2 MoCa tensors",
        "6 layers",
    ),
    config_case(
        "code of the folder",
        "config.json wants Python code of the folder to be run",
        "auto_map",
        "--trust-remote-code",
        auto_map={"AutoModelForImageTextToText": "harmful.Model", "AutoConfig": "harmful.Config"},
    ),
    config_case(
        "code of the hub",
        "config.json names attention code on the hub",
        "config.json",
        "kernels-community/flash-attn",
        "--trust-remote-code",
        text_config__attn_implementation="kernels-community/flash-attn",
    ),
    config_case(
        "quantised by an absent library",
        "config.json asks for 4-bit loading",
        "bitsandbytes",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    unharmed(
        "adapter without its weights",
        "an adapter_config.json lies beside whole weights, which count",
        written(
            "model/adapter_config.json",
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x", "r": 4, "target_modules": ["q_proj"]}),
        ),
    ),
    config_case(
        "model type a list", "config.json says model_type ['llava']", "model", "no known family", model_type=["llava"]
    ),
    config_case(
        "architectures a number, auto_map null",
        "config.json has no known model_type, architectures 5 and auto_map null",
        "model",
        "no known family",
        model_type="x",
        architectures=5,
        auto_map=None,
    ),
    case("config missing", "config.json is missing", removed(CONFIG), "config.json", "not a checkpoint folder"),
    case("config cut", "config.json ends in the middle", cut(CONFIG, 0.5), "config.json", "Copy or download"),
    case("config a list", "config.json is []", written(CONFIG, "[]"), "config.json", "list"),
    case(
        "config without end", "config.json is 100 000 brackets", written(CONFIG, "[" * 100_000), "config.json", "Copy"
    ),
    case("tokenizer missing", "tokenizer.json is missing", removed(TOKENIZER), "tokenizer"),
    case("tokenizer empty", "tokenizer.json has no bytes", cut(TOKENIZER, 0), "tokenizer.json", "Copy or download"),
    case(
        "tokenizer cut", "tokenizer.json ends in the middle", cut(TOKENIZER, 0.5), "tokenizer.json", "Copy or download"
    ),
    case("tokenizer {}", "tokenizer.json is {}", written(TOKENIZER, "{}"), "tokenizer's files"),
    case(
        "tokenizer_config missing",
        "tokenizer_config.json is missing: prompts would lack their first and last token",
        removed(TOKENIZER_CONFIG),
        "end token",
        "tokenizer_config.json",
    ),
    case(
        "tokenizer_config cut",
        "tokenizer_config.json ends in the middle",
        cut(TOKENIZER_CONFIG, 0.5),
        "tokenizer_config.json",
        "Copy",
    ),
    unharmed(
        "processor missing",
        "processor_config.json is missing; preprocessor_config.json and config.json hold the same",
        removed(PROCESSOR),
    ),
    case(
        "processor cut",
        "processor_config.json ends in the middle",
        cut(PROCESSOR, 0.5),
        "processor_config.json",
        "Copy",
    ),
    case(
        "processor crops larger",
        "the processor makes images of 48 pixels, the tower takes 40",
        config(IMAGE_PROCESSOR, crop_size={"height": 48, "width": 48}, size={"shortest_edge": 48}),
        "03.png",
        "48*48",
        "belong together",
    ),
    case(
        "processor counts other patches",
        "the processor makes room for 100 patches, the tower gives 25",
        config(PROCESSOR, patch_size=4),
        "25 image feature rows for 100",
        "do not belong together",
    ),
    case(
        "processor divides by zero",
        "the processor's standard deviation is 0",
        config(IMAGE_PROCESSOR, image_std=[0, 0, 0]),
        "image_std",
        "processor_config.json",
    ),
    case(
        "processor scales by nothing",
        "the processor multiplies colours by 0",
        config(IMAGE_PROCESSOR, rescale_factor=0),
        "rescale_factor",
        "processor_config.json",
    ),
    case(
        "processor's deviation negative",
        "the processor's standard deviation is -1",
        config(IMAGE_PROCESSOR, image_std=[-1, -1, -1]),
        "image_std",
        "processor_config.json",
    ),
    case(
        "processor resizes to a billion",
        "the processor resizes to 10^9 pixels",
        config(IMAGE_PROCESSOR, size={"shortest_edge": 10**9}),
        "03.png",
        "MemoryError",
        "processor's files",
    ),
    config_case(
        "epsilon large",
        "config.json says rms_norm_eps: 3.7",
        "config.json",
        "rms_norm_eps",
        text_config__rms_norm_eps=3.7,
    ),
    case(
        "template broken",
        "the chat template is no template",
        written(TEMPLATE, "{% for x in %}"),
        "chat template",
        "Mend",
    ),
    case(
        "template empty",
        "the chat template's file is empty",
        written(TEMPLATE, " \n"),
        "chat_template.jinja",
        "Copy it",
    ),
    case(
        "template without text",
        "the chat template drops what the assistant says",
        written(TEMPLATE, "USER: <image>"),
        "chat template",
        "another template",
    ),
    case(
        "template without image",
        "the chat template writes no image token",
        written(TEMPLATE, "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"),
        "03.png",
        "0 <image> tokens and 1 images",
    ),
    Case(
        "template missing",
        "the chat template is missing: the documented fallback has the same words",
        damaged(MICRO, removed(TEMPLATE)),
        same_as(MICRO),
    ),
)


@each(CASES)
def test_a_damaged_hugging_face_checkpoint_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("checkpoints", case)
