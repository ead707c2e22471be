"""Mini-Gemini checkpoints that are spelled otherwise, calibrated, incomplete or contradictory."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.mini_gemini_cases import (
    altered,
    assert_equal_to_rounding,
    case,
    first_sample,
    load_mini_gemini,
)
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.tower_config import TowerConfig, open_tower_config
from mir_plugin.model_adapters.mini_gemini.files import view_layout

pytestmark = pytest.mark.slow

CLIP = "model.vision_tower.vision_tower."
AUX = "model.vision_tower_aux."


def drop(prefix: str) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


@pytest.mark.parametrize("model_type", ["mini_gemini", "mgm_mistral"])
def test_other_spellings_and_a_mistral_without_window_give_the_same_numbers(tmp_path: Path, model_type: str) -> None:
    adapter = load_mini_gemini(altered(tmp_path, model_type=model_type, sliding_window=None))
    batch, states = first_sample("mgm_full")
    assert_equal_to_rounding(adapter.forward(batch), states[-1])
    assert adapter.family == "mini-gemini"


def test_the_checkpoints_own_dtype_is_taken_and_stays_close(tmp_path: Path) -> None:
    adapter = load_mini_gemini(case("mgm_full").folder / "model", dtype="auto")
    batch, states = first_sample("mgm_full")
    last = adapter.forward(batch)
    assert (last.dtype, adapter.facts["dtype"]) == (torch.bfloat16, "bfloat16")
    assert (last.float() - states[-1]).norm() < 0.05 * states[-1].norm()  # eight bits of mantissa over four layers


def test_a_full_checkpoint_without_clip_weights_takes_the_named_tower_and_says_so(tmp_path: Path) -> None:
    adapter = load_mini_gemini(altered(tmp_path, drop(CLIP)))
    assert "named by mm_vision_tower" in adapter.facts["vision_tower"]
    named = load_mini_gemini(
        case("mgm_full").folder / "model",
        vision_tower=case("mgm_full").folder / case("mgm_full").recorded["vision_tower_path"],
    )
    batch, _ = first_sample("mgm_full")
    assert torch.equal(adapter.forward(batch), named.forward(batch))


def calibration(layer: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(layer)
    return 1 + 0.2 * torch.randn(64, generator=generator), 0.5 * torch.randn(64, generator=generator)


def add_moca(tensors: dict[str, Tensor]) -> None:
    for layer in range(4):
        scale, shift = calibration(layer)
        tensors[f"model.layers.{layer}.modality_layernorm.scale"] = scale
        tensors[f"model.layers.{layer}.modality_layernorm.shift"] = shift


def test_moca_calibrates_every_layer_of_this_family_on_every_forward(tmp_path: Path) -> None:
    adapter = load_mini_gemini(altered(tmp_path, add_moca, use_moca=True))
    assert adapter.facts["moca"] is True
    plain = case("mgm_full").adapter
    batch = adapter.encode(case("mgm_full").samples()[:2])  # of different lengths, so that one is padded
    attended = batch.inputs["prompts"].attention_mask

    def calibrated(layer: int) -> Any:
        scale, shift = calibration(layer)

        def hook(_: Any, __: Any, output: Tensor) -> Tensor:
            return torch.where(batch.vision_mask[..., None], output * scale + shift, output)

        return hook

    with ExitStack() as hooks:
        for layer, block in enumerate(plain.decoder.layers):
            hooks.callback(block.register_forward_hook(calibrated(layer)).remove)
        wanted = plain.forward(batch)[attended]
    for _ in range(2):
        assert_equal_to_rounding(adapter.forward(batch)[attended], wanted)
    assert (plain.forward(batch)[attended] - wanted).norm() > 0.1 * wanted.norm()


def clip_config(**llava_config: Any) -> TowerConfig:
    folder = case("mgm_full").folder / case("mgm_full").recorded["vision_tower_path"]
    return open_tower_config(folder, llava_config, {})


def test_a_single_view_has_no_global_view_beside_it() -> None:
    layout = view_layout({"image_size_aux": 768, "image_grid": 1, "image_global": True}, clip_config())
    assert (layout.n_views, layout.with_global_view) == (1, False)


def test_a_grid_without_global_view_has_only_tiles() -> None:
    layout = view_layout({"image_size_aux": 1536, "image_grid": 2}, clip_config())
    assert (layout.n_views, layout.side) == (4, 336)


@pytest.mark.parametrize(("size", "grid", "step"), [(None, 1, 96), (800, 1, 96), (768.0, 1, 96), (864, 2, 192)])
def test_a_high_resolution_that_cannot_be_shared_out_is_refused(size: Any, grid: int, step: int) -> None:
    with pytest.raises(MirError, match=rf"image_size_aux is {size}, expected a multiple of {step}"):
        view_layout({"image_size_aux": size, "image_grid": grid}, clip_config())


def test_a_class_token_is_refused() -> None:
    with pytest.raises(MirError, match="mm_vision_select_feature is 'cls_patch', expected 'patch'"):
        view_layout({"image_size_aux": 768}, clip_config(mm_vision_select_feature="cls_patch"))


def narrow_key_projector(tensors: dict[str, Tensor]) -> None:
    key = "model.vlm_uni_aux_projector.1.weight"
    tensors[key] = tensors[key][:, :100].contiguous()


def unknown_key(tensors: dict[str, Tensor]) -> None:
    tensors["model.vision_fpn.0.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (drop("model.vlm_uni_query_projector.1.bias"), {}, r"no weights for 1 of .*mining\.query_projector\.1\.bias"),
        (
            narrow_key_projector,
            {},
            r"aux_projector\.1\.weight' in .* has shape \[32, 100\].*\[32, 120\]",
        ),
        (unknown_key, {}, r"adapter mini-gemini has no rule for 1 of .*'model\.vision_fpn\.0\.weight'"),
        (drop(AUX), {"optimize_vision_tower_aux": True}, r"holds no weights of the second .*optimize_vision_tower_aux"),
        (drop(f"{AUX}vision_stages.2.blocks.0"), {"optimize_vision_tower_aux": True}, r"ConvNeXt.*--vision-tower-aux"),
        (drop("nothing"), {"mm_hidden_size_aux": 2880}, r"second tower with 2880 channels .* has 120"),
        (
            drop("nothing"),
            {"mm_vision_tower": "zoo/OpenAI/clip"},
            r"'zoo/OpenAI/clip' was not .*--vision-tower",
        ),
        (drop("nothing"), {"mm_vision_tower_aux": "zoo/OpenAI/x"}, r"'zoo/OpenAI/x' was not found.*--vision-tower-aux"),
        (drop("nothing"), {"mm_vision_tower_aux": None}, r"mm_vision_tower_aux.*--vision-tower-aux"),
        (drop("nothing"), {"image_size_aux": None}, "image_size_aux is None"),
        (drop("nothing"), {"model_type": "mgm_gemma"}, r"has shape .* but"),  # Gemma's heads are 256 wide
        (drop("nothing"), {"model_type": "mgm_mixtral"}, "model_type 'mgm_mixtral'"),
        (drop("nothing"), {"intermediate_size": 32}, r"has shape .* but"),
    ],
)
def test_a_broken_checkpoint_is_one_error_naming_the_part(
    tmp_path: Path, change: Any, config: dict[str, Any], message: str
) -> None:
    checkpoint = altered(tmp_path, change, **config)
    with pytest.raises(MirError, match=f"(?s){message}"):
        load_mini_gemini(checkpoint)


def test_a_second_tower_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = case("mgm_full").folder / case("mgm_full").recorded["vision_tower_aux_path"]
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(MirError, match=r"holds no weights of an OpenCLIP model \(open_clip_model.safetensors or"):
        load_mini_gemini(case("mgm_full").folder / "model", vision_tower_aux=tmp_path)


def test_a_projector_checkpoint_whose_base_llm_is_nowhere_asks_for_it(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(case("mgm_projector").folder / "model", tmp_path / "alone")
    with pytest.raises(MirError, match=r"base LLM 'base_llm' was not found.*--base-llm"):
        load_mini_gemini(checkpoint)
