"""Parts one by one: S2, MobileVLM's projector, resolutions, templates, names of language models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.base_llm import llm_kind
from mir_plugin.model_adapters.llava.merging import Merge
from mir_plugin.model_adapters.llava.multiscale import multiscale
from mir_plugin.model_adapters.llava.projectors import LdpProjector
from mir_plugin.model_adapters.llava.views import Views, views_of
from mir_plugin.model_adapters.prompts.conversation import conversation_named, dialogue_of, end_ids


def test_s2_puts_tiles_back_where_they_were() -> None:
    picture = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    features = multiscale(lambda tile: tile.flatten(2).transpose(1, 2), picture, (4, 8))  # a feature is a pixel
    large = interpolate(interpolate(picture, size=8, mode="bicubic"), size=4, mode="area")
    expected = torch.cat([interpolate(picture, size=4, mode="bicubic"), large], dim=1)
    assert torch.equal(features, expected.flatten(2).transpose(1, 2))


def test_ldpnetv2_averages_squares_of_four_and_adds_positions() -> None:
    torch.manual_seed(0)
    projector = LdpProjector(5, 7)
    features = torch.randn(2, 24 * 24, 5)
    rows = projector(features, torch.empty(0), torch.empty(0))
    assert rows.shape == (2, projector.n_vision_tokens(576), 7) == (2, 144, 7)
    torch.nn.init.zeros_(projector.peg["peg"][0].weight)
    torch.nn.init.zeros_(projector.peg["peg"][0].bias)
    grid = projector.mlp["mlp"](features).transpose(1, 2).unflatten(2, (24, 24))
    plain = projector(features, torch.empty(0), torch.empty(0))
    assert torch.allclose(plain, avg_pool2d(grid, 2).flatten(2).transpose(1, 2), atol=1e-6)  # sums in another order
    assert set(projector.state_dict()) >= {"mlp.mlp.0.weight", "mlp.mlp.2.bias", "peg.peg.0.weight"}


@pytest.mark.parametrize("stated", ["(1x1),...,(2x3)", "[(10, 10), (10, 20)]", [[10, 10], [20, 30]]])
def test_resolutions_in_every_form_that_configs_have(stated: Any) -> None:
    views = views_of({"image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": stated}, 10)
    assert views is not None and views.max_tiles == 9 and (10, 10) in views.resolutions
    assert stated != "(1x1),...,(2x3)" or len(views.resolutions) == 6


@pytest.mark.parametrize("stated", [None, [], "none", [[10, 15]], [[10]]])
def test_resolutions_that_are_none_are_named(stated: Any) -> None:
    with pytest.raises(MirError, match="image_grid_pinpoints"):
        views_of({"image_aspect_ratio": "anyres", "image_grid_pinpoints": stated}, 10)


@pytest.mark.parametrize("kind", ["flat", "spatial", "spatial_unpad", "spatial_unpad_nobase"])
@pytest.mark.parametrize("size", [(30, 11), (11, 30), (7, 7), (200, 190)])
def test_rows_are_as_many_as_counted_whatever_the_merge(kind: str, size: tuple[int, int]) -> None:
    views = Views(((20, 10), (10, 20), (20, 20)), 10, max_tiles=2)
    merge = Merge(kind, 5, views)
    rows = torch.randn(views.n_views(size), 25, 3)
    assert merge(rows, size, torch.ones(3) if merge.has_newline else None).shape == (merge.n_rows(size), 3)


@pytest.mark.parametrize(
    ("stated", "stored", "kind"),
    [
        ("llava_qwen", (), "qwen2"),
        ("llava_qwen", ("self_attn.q_norm.weight",), "qwen3"),
        ("bunny-phi", (), "phi"),
        ("llava_phi", ("self_attn.qkv_proj.weight",), "phi3"),
        ("mgm_gemma", (), "gemma"),
        ("mobilevlm", (), "llama"),
        ("share4v", (), "llama"),
        ("mini_gemini_mistral", (), "mistral"),
        ("gpt2", (), "gpt2"),
    ],
)
def test_a_forks_name_of_its_language_model(stated: str, stored: tuple[str, ...], kind: str) -> None:
    assert llm_kind(stated, [f"base_llm.model.layers.0.{name}" for name in stored]) == kind


def of_base(llm: str, *turn_ends: str, model_type: str = "llava") -> Any:
    """The template chosen for a base LLM whose tokenizer has these as single tokens."""
    tokenizer: Any = SimpleNamespace(encode=lambda text: [7] if text in turn_ends else list(range(len(text))))
    chosen = dialogue_of({"model_type": model_type}, SimpleNamespace(model_type=llm), tokenizer)
    return chosen.name, end_ids(chosen, tokenizer)


def test_a_checkpoint_answers_in_the_template_of_its_base() -> None:
    assert of_base("llama", "</s>") == ("vicuna_v1", [7])
    assert of_base("mistral", "</s>") == ("mistral_instruct", [7])
    assert of_base("llama", "<|eot_id|>") == ("llava_llama_3", [7])
    assert of_base("qwen2", "<|im_end|>") == ("qwen_1_5", [7])
    assert of_base("qwen2") == ("vicuna_v1", [])  # a tokenizer without turns: no chat model
    assert of_base("gemma", "<end_of_turn>") == ("gemma_instruct", [7])
    assert of_base("phi", "<|endoftext|>", model_type="bunny-phi") == ("bunny", [7])


def test_templates_are_written_as_llava_next_writes_them() -> None:
    asked = conversation_named("qwen_1_5").question("<image>\nWhat?")
    assert asked == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert conversation_named("mistral_instruct").question("Q") == "[INST] Q [/INST]"
    with pytest.raises(MirError, match=r"conv_template 'qwen_9'.*qwen_1_5"):
        conversation_named("qwen_9")
