"""Original-format checkpoints whose config, tokenizer, vision tower, base LLM, LoRA or MoCa do not fit each other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.battery import Bench, Case, Outcome, Refused, each, in_full
from faults.damage import (
    FULL,
    LORA,
    MICRO,
    MINI_GEMINI,
    MOCA,
    PROJECTOR,
    QFORMER,
    Damage,
    all_of,
    config,
    copy_original,
    cut,
    damaged,
    measured,
    removed,
    renamed,
    same_as,
    tensors,
    undamaged,
    without,
    written,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.slow

CONFIG, TOWER, BASE = "model/config.json", "vision_tower/config.json", "base_llm/config.json"
PREPROCESSOR, TOKENIZER = "vision_tower/preprocessor_config.json", "model/tokenizer.model"
ADAPTER, ADAPTER_WEIGHTS = "model/adapter_config.json", "model/adapter_model.safetensors"


def case(
    name: str, done: str, damage: Damage, *words: str, of: str = FULL, options: tuple[str, ...] = (), full: bool = False
) -> Case:
    return Case(name, done, damaged(of, damage, *options), Refused(*words), full=full)


def config_case(name: str, done: str, *words: str, of: str = FULL, full: bool = False, **fields: Any) -> Case:
    return case(name, done, config(CONFIG, **fields), "config.json", *words, of=of, full=full)


def tower_case(name: str, done: str, *words: str, full: bool = False, **fields: Any) -> Case:
    return case(name, done, config(TOWER, **fields), "vision_tower", *words, full=full)


def adapter_case(name: str, done: str, *words: str, **fields: Any) -> Case:
    return case(name, done, config(ADAPTER, **fields), "adapter_config.json", *words, of=LORA)


def unharmed(name: str, done: str, damage: Damage, *options: str, of: str = FULL) -> Case:
    return Case(name, done, damaged(of, damage, *options), same_as(of))


CONFIGS = (
    case("config missing", "config.json is missing", removed(CONFIG), "model", "config.json"),
    case("config empty", "config.json has no bytes", cut(CONFIG, 0), "config.json", "Copy or download"),
    case("config cut", "config.json ends in the middle", cut(CONFIG, 0.5), "config.json", "Copy or download"),
    case("config a list", "config.json is []", written(CONFIG, "[]"), "config.json", "list"),
    case("config latin-1", "config.json is not UTF-8", written(CONFIG, b'{"a": "\xe9"}'), "config.json", "utf-8"),
    case("config nested", "config.json is 100 000 brackets", written(CONFIG, "[" * 100_000), "config.json", "Copy"),
    config_case("no layers stated", "config.json lacks num_hidden_layers", "num_hidden_layers", num_hidden_layers=...),
    config_case(
        "layers too few", "config.json says 3 layers, 4 are stored", "num_hidden_layers", "4", num_hidden_layers=3
    ),
    config_case(
        "layers too many", "config.json says 5 layers, 4 are stored", "num_hidden_layers", "4", num_hidden_layers=5
    ),
    config_case("a billion layers", "config.json says 10^9 layers", "num_hidden_layers", num_hidden_layers=10**9),
    config_case("layers in words", "config.json says 'four' layers", "num_hidden_layers", num_hidden_layers="four"),
    config_case("layers negative", "config.json says -1 layers", "num_hidden_layers", num_hidden_layers=-1),
    config_case(
        "width doubled", "config.json says a width of 128, the weights are 64 wide", "hidden_size", hidden_size=128
    ),
    config_case("width immense", "config.json says a width of 10^12", "hidden_size", hidden_size=10**12),
    config_case("heads do not divide", "config.json says 3 heads for a width of 64", "64", "3", num_attention_heads=3),
    config_case("no heads", "config.json says no heads", "num_attention_heads", num_attention_heads=0),
    config_case(
        "heads contradict", "config.json says 4 key heads, the weights have 2", "k_proj", num_key_value_heads=4
    ),
    config_case("head immense", "config.json says heads of 10^10 numbers", "head_dim", head_dim=10**10),
    config_case(
        "vocabulary larger", "config.json says 700 words, 600 are stored", "embed_tokens", "700", vocab_size=700
    ),
    config_case("epsilon in words", "config.json says rms_norm_eps: 'small'", "rms_norm_eps", rms_norm_eps="small"),
    config_case("epsilon large", "config.json says rms_norm_eps: 3.7", "rms_norm_eps", rms_norm_eps=3.7),
    config_case("key heads immense", "config.json says 10^9 key heads", num_key_value_heads=10**9),
    config_case("vocabulary immense", "config.json says 10^9 words", vocab_size=10**9),
    config_case("activation unknown", "config.json names no known activation", "banana", hidden_act="banana"),
    config_case(
        "rotary unknown", "config.json names no known rotary scaling", "banana", rope_scaling={"type": "banana"}
    ),
    config_case("rotary a number", "config.json says rope_scaling: 5", rope_scaling=5),
    config_case(
        "biases asked for", "config.json says attention has biases, none are stored", "bias", attention_bias=True
    ),
    config_case("model type unknown", "config.json says model_type gpt2", "gpt2", "supported", model_type="gpt2"),
    case(
        "context of 100",
        "config.json says a context of 100 positions",
        config(CONFIG, max_position_embeddings=100),
        "03.txt",
        "100 positions",
        "Shorten or remove",
    ),
    config_case("model type a list", "config.json says model_type ['llama']", "supported", model_type=["llama"]),
    config_case(
        "context in words",
        "config.json says a context of 'long'",
        "max_position_embeddings",
        max_position_embeddings="long",
    ),
    config_case(
        "cut at 10",
        "config.json cuts prompts at 10 tokens, before the image",
        "tokenizer_model_max_length 10",
        tokenizer_model_max_length=10,
    ),
    config_case(
        "cut at 0", "config.json cuts prompts at 0 tokens", "tokenizer_model_max_length", tokenizer_model_max_length=0
    ),
    config_case(
        "cut in words",
        "config.json cuts prompts at 'never'",
        "tokenizer_model_max_length",
        tokenizer_model_max_length="never",
    ),
    config_case(
        "cut negative",
        "config.json cuts prompts at -5 tokens",
        "tokenizer_model_max_length",
        tokenizer_model_max_length=-5,
    ),
    config_case(
        "projector unknown",
        "config.json names no known projector",
        "mm_projector_type",
        "mlpNx_gelu",
        mm_projector_type="banana",
    ),
    config_case(
        "projector linear", "config.json says linear, two layers are stored", "projector", mm_projector_type="linear"
    ),
    config_case(
        "projector unnamed",
        "config.json lacks mm_projector_type, two layers are stored",
        "projector",
        mm_projector_type=...,
    ),
    config_case(
        "projector of 10^8 layers",
        "config.json says mlp100000000x_gelu",
        "mm_projector_type",
        mm_projector_type="mlp100000000x_gelu",
    ),
    config_case(
        "projector of no layer", "config.json says mlp0x_gelu", "mm_projector_type", mm_projector_type="mlp0x_gelu"
    ),
    config_case(
        "projector of another tower",
        "config.json says the tower is 48 wide, it is 32",
        "mm_hidden_size",
        "--vision-tower",
        mm_hidden_size=48,
    ),
    config_case(
        "start and end tokens",
        "config.json wants <im_start>, the tokenizer has none",
        "<im_start>",
        "tokenizer saved with",
        mm_use_im_start_end=True,
    ),
    config_case(
        "no tower named", "config.json names no vision tower", "mm_vision_tower", "--vision-tower", mm_vision_tower=""
    ),
    config_case(
        "tower not found",
        "config.json names a vision tower that is nowhere",
        "nowhere/tower",
        "--vision-tower",
        mm_vision_tower="nowhere/tower/here",
    ),
    config_case(
        "tower name immense",
        "config.json names a vision tower with 5000 letters",
        "--vision-tower",
        mm_vision_tower="a" * 5000,
    ),
    config_case(
        "tower name a list", "config.json names a list as vision tower", "--vision-tower", mm_vision_tower=["a"]
    ),
    config_case(
        "tower layer beyond",
        "config.json takes layer 99 of a tower of 3",
        "mm_vision_select_layer",
        "99",
        mm_vision_select_layer=99,
    ),
    config_case(
        "tower layer in words",
        "config.json takes the 'last' layer",
        "mm_vision_select_layer",
        mm_vision_select_layer="last",
    ),
    config_case(
        "tower feature unknown",
        "config.json takes feature 'pixels'",
        "mm_vision_select_feature",
        mm_vision_select_feature="pixels",
    ),
    config_case(
        "anyres",
        "config.json says anyres, without resolutions",
        "image_grid_pinpoints",
        image_aspect_ratio="anyres",
    ),
    unharmed(
        "cut at 10^30",
        "config.json cuts prompts at 10^30 tokens, as tokenizers without limit say",
        config(CONFIG, tokenizer_model_max_length=10**30),
    ),
    unharmed(
        "ties stated",
        "config.json says tied embeddings although both are stored",
        config(CONFIG, tie_word_embeddings=True),
    ),
    unharmed(
        "dtype unknown",
        "config.json says torch_dtype banana: the weights' own counts",
        config(CONFIG, torch_dtype="banana"),
    ),
    unharmed(
        "padding token immense",
        "config.json says pad_token_id 10^9: padding is masked",
        config(CONFIG, pad_token_id=10**9),
    ),
    unharmed(
        "heads unstated",
        "config.json lacks num_key_value_heads where all heads have their own",
        config(CONFIG, num_key_value_heads=...),
        of=PROJECTOR,
    ),
)


def says_twice(field: str, value: str) -> Damage:
    """A field stands once more at the end, with another value; json takes the last, other readers the first."""

    def damage(folder: Path) -> None:
        text = (folder / CONFIG).read_text().rstrip()
        (folder / CONFIG).write_text(f'{text[:-1]}, "{field}": {value}}}')

    return damage


ODD_CONFIGS = (
    case("config says two things", "config.json has two values of rope_theta", says_twice("rope_theta", "500000.0"),
         "config.json", "rope_theta", "duplicate key", "Copy"),
    case("config says two things, Hugging Face", "config.json of a Hugging Face checkpoint names two tower layers",
         says_twice("vision_feature_layer", "-1"), "config.json", "vision_feature_layer", "duplicate key", of=MICRO),
    case("config with a byte-order mark", "config.json begins with a byte-order mark, as Notepad saves it",
         lambda folder: (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes()), "config.json",
         "BOM"),
    case("config in UTF-16", "config.json is in UTF-16",
         lambda folder: (folder / CONFIG).write_bytes((folder / CONFIG).read_text().encode("utf-16")), "config.json",
         "cannot be read as JSON"),
    *(
        config_case(f"rope_theta {theta}", f"config.json says rope_theta: {theta!r}", "rope_theta", "positive",
                    rope_theta=theta)
        for theta in (float("nan"), float("inf"), 0, -10000.0, "x", True)
    ),
    *(
        config_case(f"rope_scaling {factor}", f"config.json scales positions by {factor!r}", "rope_scaling.factor",
                    "positive", rope_scaling={"type": "linear", "factor": factor})
        for factor in (-2.0, 0, float("nan"), "two")
    ),
    case("rope_theta NaN, Hugging Face", "config.json of a Hugging Face checkpoint says rope_theta: NaN",
         config(CONFIG, text_config__rope_parameters={"rope_theta": float("nan"), "rope_type": "default"}),
         "config.json", "rope_parameters.rope_theta", "positive", of=MICRO),
    *(
        config_case(f"whole number {field} {value}", f"config.json says {field}: {value!r}", field, "whole number",
                    **{field: value})
        for field, value in (("hidden_size", 64.0), ("num_hidden_layers", True), ("vocab_size", None))
    ),
    *(
        unharmed(f"without effect: {field} {value}", f"config.json says {field}: {value!r}, which plays no part here",
                 config(CONFIG, **{field: value}))
        for field, value in (("attention_dropout", 0.9), ("sliding_window", 3), ("pretraining_tp", 2))
    ),
)  # fmt: skip


def other_vocabulary(folder: Path) -> None:
    """A sentencepiece model of 100 pieces, trained on nothing that matters."""
    import io

    import sentencepiece

    model = io.BytesIO()
    lines = [f"{a}{b} {b}{a}{a}" for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=100, minloglevel=2, hard_vocab_limit=False
    )
    (folder / TOKENIZER).write_bytes(model.getvalue())


def cut_between_pieces(folder: Path) -> None:
    """The tokenizer ends behind its 300th piece: still a well-formed message, without its settings."""
    content = (folder / TOKENIZER).read_bytes()
    at = 0
    for _ in range(300):
        assert content[at] == 0x0A  # field 1: a piece, of less than 128 bytes
        at += 2 + content[at + 1]
    (folder / TOKENIZER).write_bytes(content[:at])


TOKENIZERS = (
    case("tokenizer missing", "tokenizer.model is missing", removed(TOKENIZER), "tokenizer.model", "Copy"),
    case("tokenizer empty", "tokenizer.model has no bytes", cut(TOKENIZER, 0), "tokenizer.model", "Copy or download"),
    case(
        "tokenizer cut",
        "tokenizer.model ends in the middle",
        cut(TOKENIZER, 0.5),
        "tokenizer.model",
        "Copy or download",
    ),
    case(
        "tokenizer cut between pieces",
        "tokenizer.model ends behind its 300th piece",
        cut_between_pieces,
        "tokenizer.model",
        "Copy or download",
    ),
    case(
        "tokenizer text",
        "tokenizer.model is a web page",
        written(TOKENIZER, "<html>404</html>"),
        "tokenizer.model",
        "Copy or download",
    ),
    case(
        "tokenizer of another model",
        "tokenizer.model has 56 pieces for 600 embeddings",
        other_vocabulary,
        "tokenizer.model",
        "56 tokens",
        "600",
        "another model",
    ),
    case(
        "tokenizer larger",
        "tokenizer_config.json gives </s> an id that has no embedding",
        config("model/tokenizer_config.json", added_tokens_decoder={"5000": {"content": "</s>"}}),
        "tokenizer",
        "5000",
        "600 embeddings",
    ),
    unharmed(
        "added tokens contradict",
        "added_tokens.json and tokenizer_config.json disagree about </s>: the latter counts, as in the original",
        written("model/added_tokens.json", json.dumps({"</s>": 500})),
    ),
    case(
        "added tokens in words",
        "added_tokens.json gives 'two' as an id",
        written("model/added_tokens.json", '{"<x>": "two"}'),
        "added_tokens.json",
        "two",
    ),
    case(
        "added tokens cut",
        "added_tokens.json ends in the middle",
        written("model/added_tokens.json", '{"<x>": 1'),
        "added_tokens.json",
        "Copy",
    ),
    case(
        "added tokens a list",
        "added_tokens.json is a list",
        written("model/added_tokens.json", "[1]"),
        "added_tokens.json",
        "list",
    ),
    case(
        "tokenizer config cut",
        "tokenizer_config.json ends in the middle",
        cut("model/tokenizer_config.json", 0.5),
        "tokenizer_config.json",
        "Copy",
    ),
    case(
        "tokenizer config without texts",
        "added_tokens_decoder of tokenizer_config.json names no texts",
        config("model/tokenizer_config.json", added_tokens_decoder={"3": {"special": True}}),
        "tokenizer_config.json",
        "added_tokens_decoder",
    ),
    case(
        "fast tokenizer cut",
        "no tokenizer.model, and a tokenizer.json that ends in the middle",
        all_of(removed(TOKENIZER), written("model/tokenizer.json", '{"version": "1.0", "model"')),
        "tokenizer.json",
        "Copy or download",
    ),
    case(
        "fast tokenizer {}",
        "no tokenizer.model, and a tokenizer.json that is {}",
        all_of(removed(TOKENIZER), written("model/tokenizer.json", "{}")),
        "tokenizer.json",
        "Copy or download",
    ),
)


def tower_weights(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    return tensors("vision_tower/model.safetensors", change)


def whole_clip(folder: Path) -> None:
    """The tower's config says that it is a whole CLIP model, without saying which."""
    config(TOWER, model_type="clip")(folder)


TOWERS = (
    case(
        "tower missing",
        "the vision tower's folder is missing",
        removed("vision_tower"),
        "vision_tower",
        "--vision-tower",
    ),
    case(
        "tower config cut",
        "the tower's config.json ends in the middle",
        cut(TOWER, 0.5),
        "vision_tower/config.json",
        "Copy",
    ),
    tower_case("tower siglip", "the tower is a SigLIP model", "siglip", "--vision-tower", model_type="siglip"),
    case(
        "tower clip without vision",
        "the tower's config is a whole CLIP's, without vision_config",
        whole_clip,
        "vision_tower/config.json",
        "vision_config",
    ),
    tower_case("tower patches of zero", "the tower has patches of 0 pixels", "patch_size", patch_size=0),
    tower_case("tower image immense", "the tower takes images of 10^6 pixels a side", "position", image_size=1_000_000),
    tower_case(
        "tower image other", "the tower takes images of 224 pixels, its weights are for 336", "position", image_size=224
    ),
    tower_case(
        "tower width other",
        "the tower's config says 48 wide, the projector wants 32",
        "hidden_size = 48",
        hidden_size=48,
    ),
    tower_case(
        "tower layers fewer",
        "the tower's config says 2 layers, 3 are stored",
        "num_hidden_layers = 2",
        num_hidden_layers=2,
    ),
    tower_case(
        "tower a billion layers", "the tower's config says 10^9 layers", "num_hidden_layers", num_hidden_layers=10**9
    ),
    tower_case("tower heads zero", "the tower has no heads", num_attention_heads=0),
    tower_case("tower width in words", "the tower's width is 'wide'", "hidden_size", hidden_size="wide"),
    case(
        "preprocessor missing", "preprocessor_config.json is missing", removed(PREPROCESSOR), "preprocessor_config.json"
    ),
    case(
        "preprocessor cut",
        "preprocessor_config.json ends in the middle",
        cut(PREPROCESSOR, 0.5),
        "preprocessor_config.json",
        "Copy",
    ),
    case(
        "preprocessor mean of two",
        "the mean colour has two channels",
        config(PREPROCESSOR, image_mean=[0.5, 0.5]),
        "preprocessor_config.json",
    ),
    case(
        "preprocessor divides by zero",
        "the colours' standard deviation is 0",
        config(PREPROCESSOR, image_std=[0, 0, 0]),
        "preprocessor_config.json",
        "image_std",
    ),
    case(
        "preprocessor mean not a number",
        "the mean colour is NaN",
        config(PREPROCESSOR, image_mean=[float("nan")] * 3),
        "preprocessor_config.json",
        "image_mean",
    ),
    case(
        "preprocessor filter unknown",
        "the resampling filter is number 77",
        config(PREPROCESSOR, resample=77),
        "preprocessor_config.json",
        "77",
    ),
    case(
        "preprocessor rescaling {}",
        "do_rescale is {}: colours from 0 to 255 would be taken as they are",
        config(PREPROCESSOR, do_rescale={}),
        "preprocessor_config.json",
        "do_rescale",
    ),
    case(
        "preprocessor factor immense",
        "colours are multiplied by 10^9",
        config(PREPROCESSOR, rescale_factor=1e9),
        "preprocessor_config.json",
        "rescale_factor",
    ),
    tower_case("tower channels immense", "the tower takes 10^9 colours", num_channels=10**9),
    case(
        "preprocessor side of zero",
        "images are resized to 0 pixels",
        config(PREPROCESSOR, size={"shortest_edge": 0}),
        "preprocessor_config.json",
        "shortest_edge",
    ),
    case(
        "preprocessor side immense",
        "images are resized to 10^7 pixels",
        config(PREPROCESSOR, size={"shortest_edge": 10**7}),
        "preprocessor_config.json",
    ),
    case(
        "preprocessor crop other",
        "images are cropped to 224 pixels, the tower takes 336",
        config(PREPROCESSOR, crop_size=224, size=224),
        "preprocessor_config.json",
        "224",
        "336",
    ),
    case(
        "preprocessor crop larger",
        "400 pixels are cropped out of 336",
        config(PREPROCESSOR, crop_size=400),
        "preprocessor_config.json",
        "400",
    ),
    case(
        "tower keys foreign",
        "the tower's keys have another prefix",
        tower_weights(renamed("vision_model.", "model.visual.")),
        "vision tower",
        "model.visual.",
        of=PROJECTOR,
    ),
    case(
        "tower half empty",
        "the checkpoint holds half a vision tower",
        tensors("model/model.safetensors", without("model.vision_tower.vision_tower.vision_model.encoder.layers.0.")),
        "vision_tower/config.json",
        "num_hidden_layers = 3",
        "have 2",
    ),
    case(
        "second tower missing",
        "Mini-Gemini's second tower is missing",
        removed("vision_tower_aux"),
        "second vision tower",
        "--vision-tower-aux",
        of=MINI_GEMINI,
    ),
    case(
        "second tower size",
        "Mini-Gemini's image_size_aux is 100",
        config(CONFIG, image_size_aux=100),
        "image_size_aux",
        "100",
        "768",
        of=MINI_GEMINI,
    ),
    case(
        "second tower grid",
        "Mini-Gemini's image_grid is 'two'",
        config(CONFIG, image_grid="two"),
        "image_grid",
        of=MINI_GEMINI,
    ),
    case(
        "q-former prompt",
        "a text of 3000 words for a Q-Former of 512 positions",
        lambda f: (f / "samples/03.txt").write_text("word " * 3000),
        "03.txt",
        "positions",
        "Shorten",
        of=QFORMER,
    ),
    case(
        "q-former key missing",
        "the Q-Former lacks its queries",
        tensors("model/mm_projector.bin", without("model.mm_projector.query_tokens")),
        "query_tokens",
        "Q-Former",
        of=QFORMER,
    ),
)


def base_is_a_llava(folder: Path) -> None:
    shutil.rmtree(folder / "base_llm")
    copy_original(FULL, folder / "other")
    (folder / "other" / "model").rename(folder / "base_llm")


def smaller_base(folder: Path) -> None:
    state = load_file(folder / "base_llm/model.safetensors")
    save_file(
        {key: value[..., :32].contiguous() for key, value in state.items()}, folder / "base_llm/model.safetensors"
    )


def one_module_only(folder: Path) -> None:
    """The adapter was saved without its last layer, as from a model that was sharded."""
    tensors(ADAPTER_WEIGHTS, without("base_model.model.model.layers.3."))(folder)


def base_case(name: str, done: str, *words: str, **fields: Any) -> Case:
    return case(name, done, config(BASE, **fields), "base_llm/config.json", *words, of=LORA)


BASES = (
    case(
        "base missing", "the base LLM's folder is missing", removed("base_llm"), "base_llm", "--base-llm", of=PROJECTOR
    ),
    case(
        "base not named",
        "config.json does not name the base LLM",
        config(CONFIG, _name_or_path=...),
        "--base-llm",
        of=PROJECTOR,
    ),
    case(
        "base without weights",
        "the base LLM's folder holds no weights",
        removed("base_llm/model.safetensors"),
        "base_llm",
        "holds no weights",
        of=PROJECTOR,
    ),
    case(
        "base cut",
        "the base LLM's weights end in the middle",
        cut("base_llm/model.safetensors", 0.5),
        "base_llm/model.safetensors",
        "Copy or download",
        of=PROJECTOR,
    ),
    case(
        "base without tokenizer",
        "neither checkpoint nor base LLM holds a tokenizer",
        removed("base_llm/tokenizer.model"),
        "tokenizer",
        "base_llm",
        of=PROJECTOR,
    ),
    case(
        "base of another size",
        "the base LLM is half as wide",
        smaller_base,
        "base_llm",
        "hidden_size",
        of=PROJECTOR,
    ),
    case(
        "base is a LLaVA",
        "--base-llm names a whole LLaVA of another language model",
        base_is_a_llava,
        "base_llm",
        "num_key_value_heads",
        of=PROJECTOR,
    ),
    case(
        "base for a full checkpoint",
        "--base-llm for a checkpoint that has its own",
        lambda f: None,
        "full checkpoint",
        "Leave it out",
        options=("--base-llm", "base_llm"),
    ),
    base_case(
        "base of other heads",
        "the base LLM has 8 heads, the checkpoint says 4",
        "num_attention_heads",
        "8",
        "4",
        num_attention_heads=8,
    ),
    base_case(
        "base of another rotation",
        "the base LLM's rope_theta is 500000, the checkpoint says 10000",
        "rope_theta",
        rope_theta=500000.0,
    ),
    base_case(
        "base of another epsilon",
        "the base LLM's rms_norm_eps is 1e-6, the checkpoint says 1e-5",
        "rms_norm_eps",
        rms_norm_eps=1e-6,
    ),
    case(
        "lora file missing",
        "adapter_model.safetensors is missing",
        removed(ADAPTER_WEIGHTS),
        "adapter_model.safetensors",
        of=LORA,
    ),
    case("lora config missing", "adapter_config.json is missing", removed(ADAPTER), "adapter_config.json", of=LORA),
    case(
        "lora file cut",
        "adapter_model.safetensors ends in the middle",
        cut(ADAPTER_WEIGHTS, 0.5),
        "adapter_model.safetensors",
        "Copy or download",
        of=LORA,
    ),
    case(
        "lora file empty",
        "adapter_model.safetensors holds no tensor",
        lambda f: save_file({}, f / ADAPTER_WEIGHTS),
        "adapter_model.safetensors",
        "no tensors",
        of=LORA,
    ),
    case(
        "lora without a layer",
        "the adapter lacks its last layer",
        one_module_only,
        "adapter_model.safetensors",
        "layers.3",
        of=LORA,
    ),
    case(
        "lora without a kind of module",
        "the adapter lacks every q_proj that its config names",
        tensors(ADAPTER_WEIGHTS, lambda s: [s.pop(k) for k in list(s) if ".q_proj." in k]),
        "adapter_model.safetensors",
        "q_proj",
        of=LORA,
    ),
    case(
        "lora without partner",
        "a factor A is stored without its B",
        tensors(ADAPTER_WEIGHTS, without("base_model.model.model.layers.0.self_attn.q_proj.lora_B")),
        "lora_A",
        "partner",
        of=LORA,
    ),
    case(
        "lora of another base",
        "the adapter's matrices are half as wide",
        tensors(
            ADAPTER_WEIGHTS, lambda s: s.update({k: v[..., :32].contiguous() for k, v in s.items() if "lora_A" in k})
        ),
        "adapter_model.safetensors",
        "another base",
        "--base-llm",
        of=LORA,
    ),
    case(
        "lora of more layers",
        "the adapter has a layer that the base LLM lacks",
        tensors(ADAPTER_WEIGHTS, renamed("base_model.model.model.layers.3.", "base_model.model.model.layers.30.")),
        "layers.30",
        "another base",
        of=LORA,
    ),
    case(
        "lora key foreign",
        "the adapter holds a weight that is no factor",
        tensors(ADAPTER_WEIGHTS, lambda s: s.update({"base_model.model.extra": torch.ones(2)})),
        "base_model.model.extra",
        "LoRA factor",
        of=LORA,
    ),
    case(
        "lora nan",
        "a factor of the adapter is NaN",
        tensors(ADAPTER_WEIGHTS, lambda s: next(iter(s.values())).fill_(float("nan"))),
        "adapter_model.safetensors",
        "NaN",
        of=LORA,
    ),
    case(
        "lora trained rest missing",
        "non_lora_trainables.bin is missing",
        removed("model/non_lora_trainables.bin"),
        "non_lora_trainables.bin",
        of=LORA,
    ),
    adapter_case("lora rank other", "adapter_config.json says rank 8, the factors have 6", "[8, inputs]", r=8),
    adapter_case("lora rank zero", "adapter_config.json says rank 0", r=0),
    adapter_case("lora rank in words", "adapter_config.json says rank 'six'", "'six'", r="six"),
    adapter_case("lora alpha missing", "adapter_config.json has no lora_alpha", "lora_alpha", lora_alpha=...),
    adapter_case(
        "lora alpha not a number", "adapter_config.json has lora_alpha NaN", "lora_alpha", lora_alpha=float("nan")
    ),
    adapter_case("lora dora", "adapter_config.json says use_dora", "use_dora", "Copy config", use_dora=True),
    adapter_case("lora other method", "adapter_config.json says LOHA", "LOHA", "Merge the adapter", peft_type="LOHA"),
    adapter_case("lora pattern a list", "rank_pattern is a list", "rank_pattern", rank_pattern=[8]),
    adapter_case(
        "lora pattern broken", "alpha_pattern is no regular expression", "alpha_pattern", alpha_pattern={"(q_proj": 3}
    ),
    unharmed(
        "lora beside a projector",
        "an mm_projector.bin of the stage before lies beside",
        lambda f: torch.save({"a": torch.ones(1)}, f / "model/mm_projector.bin"),
        of=LORA,
    ),
)


MOCA_INDEX = "model/model.safetensors.index.json"


def moca_weights(change: Callable[[dict[str, Tensor]], object], shard: int = 2) -> Damage:
    return tensors(f"model/model-0000{shard}-of-00004.safetensors", change)


def without_moca_in(layer: int) -> Damage:
    def damage(folder: Path) -> None:
        index = json.loads((folder / MOCA_INDEX).read_text())
        gone = [key for key in index["weight_map"] if f"layers.{layer}.modality_layernorm." in key]
        assert gone
        for key in gone:
            shard = folder / "model" / index["weight_map"].pop(key)
            save_file({k: v for k, v in load_file(shard).items() if k != key}, shard)
        (folder / MOCA_INDEX).write_text(json.dumps(index))

    return damage


def without_any_moca(folder: Path) -> None:
    for layer in range(4):
        without_moca_in(layer)(folder)


MOCAS = (
    config_case(
        "moca flag only",
        "config.json says use_moca, no such weights are stored",
        "use_moca",
        "modality_layernorm",
        use_moca=True,
    ),
    case(
        "moca weights gone",
        "a MoCa checkpoint lost its MoCa weights",
        without_any_moca,
        "use_moca",
        "Copy the whole",
        of=MOCA,
    ),
    case(
        "moca in three of four layers",
        "one layer lacks its MoCa weights",
        without_moca_in(1),
        "modality_layernorm",
        "layers.1",
        of=MOCA,
    ),
    config_case(
        "moca switched off",
        "config.json says use_moca: false, the weights are stored",
        "use_moca",
        "modality_layernorm",
        of=MOCA,
        use_moca=False,
    ),
    unharmed(
        "moca unstated",
        "config.json does not mention use_moca, the weights are stored: they are applied",
        config(CONFIG, use_moca=...),
        of=MOCA,
    ),
)


def locked(name: str) -> Callable[[Bench], Outcome]:
    """Measure while a file or folder may not be read, without the superuser's right to read everything."""

    def act(bench: Bench) -> Outcome:
        undamaged(FULL)  # every module is imported
        copy_original(FULL, bench.folder)
        (bench.folder / "out").mkdir()
        for folder in (bench.folder, bench.folder / "out"):
            folder.chmod(0o777)
        (bench.folder / name).chmod(0)
        user = os.geteuid()

        def as_nobody(*arguments: object) -> Outcome:
            if user == 0:
                os.seteuid(65534)
            try:
                return bench.mir(*arguments)
            finally:
                os.seteuid(user)

        try:
            return measured(bench, run=as_nobody)
        finally:
            (bench.folder / name).chmod(0o755)

    return act


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return damage


def a_file(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    (folder / "model").write_text("no folder")


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


FOLDERS = (
    case("checkpoint a file", "the checkpoint is a file, not a folder", a_file, "model", "Check the path"),
    case(
        "checkpoint empty",
        "the checkpoint's folder is empty",
        lambda f: [p.unlink() for p in (f / "model").iterdir()],
        "model",
        "config.json",
    ),
    case(
        "checkpoint a link to itself",
        "the checkpoint's folder is a link to itself",
        link("model", "model"),
        "model",
        "Check the path",
    ),
    case("config a link to itself", "config.json is a link to itself", link(CONFIG, "config.json"), "config.json"),
    case(
        "weights a link to itself",
        "model.safetensors is a link to itself",
        link("model/model.safetensors", "model.safetensors"),
        "model",
        "holds no weights",
    ),
    case(
        "weights a broken link",
        "model.safetensors is a link to a blob that is gone",
        link("model/model.safetensors", "../blobs/4d7a"),
        "model",
        "holds no weights",
    ),
    case(
        "tower a link to itself",
        "the vision tower is a link to itself",
        link("vision_tower", "vision_tower"),
        "vision_tower",
        "--vision-tower",
    ),
    case("config a pipe", "config.json is a named pipe that nobody writes to", pipe(CONFIG), "config.json"),
    case(
        "weights a pipe",
        "model.safetensors is a named pipe that nobody writes to",
        pipe("model/model.safetensors"),
        "holds no weights",
    ),
    unharmed(
        "a folder that holds itself",
        "a link to the folder above lies in the checkpoint",
        lambda f: (f / "model/again").symlink_to(".."),
    ),
    Case("config locked", "config.json may not be read", locked(CONFIG), Refused("config.json", "Permission denied")),
    Case(
        "weights locked",
        "model.safetensors may not be read",
        locked("model/model.safetensors"),
        Refused("model.safetensors", "Permission denied"),
    ),
    Case(
        "folder locked",
        "the checkpoint's folder may not be entered",
        locked("model"),
        Refused("model", "Permission denied"),
    ),
    Case(
        "tower locked",
        "the vision tower's folder may not be entered",
        locked("vision_tower"),
        Refused("vision_tower", "Permission denied"),
    ),
    Case(
        "samples locked",
        "the samples' folder may not be entered",
        locked("samples"),
        Refused("samples", "Permission denied"),
    ),
    Case(
        "sample locked", "one image may not be read", locked("samples/03.png"), Refused("03.png", "Permission denied")
    ),
    Case("text locked", "one text may not be read", locked("samples/03.txt"), Refused("03.txt", "Permission denied")),
)

CASES = (*CONFIGS, *ODD_CONFIGS, *TOKENIZERS, *in_full(*TOWERS[::2]), *TOWERS[1::2], *BASES, *MOCAS, *in_full(*FOLDERS))


@each(CASES)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("checkpoints", case)
