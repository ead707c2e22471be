"""Checkpoints of LLaVA's forks, written as their code writes them; what is expected is computed here from their source.

Bunny: bunny/model (SigLIP, S2 by s2wrapper, base LLMs). MobileVLM: mobilevlm/model/vision_projector.py. S2: s2wrapper.
Each layer's hidden states of two pictures of odd sizes are those of transformers' language model over these rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from adapters.original_layouts import (
    N_EMBEDDINGS,
    PATCH,
    SIDE,
    VISION,
    WIDE,
    clip,
    llm,
    randomised,
    siglip,
    write_tower,
)
from adapters.test_parts import HIDDEN, SAMPLES, loaded, our_states
from adapters.tiny_models import tiny_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, open_checkpoint

pytestmark = pytest.mark.slow

Rows = Callable[[Tensor], Tensor]
WIDTH = WIDE["hidden_size"]


def tower_of(config: Any) -> Any:
    if config.model_type == "siglip_vision_model":
        return randomised(tf.SiglipVisionModel(config))
    return randomised(tf.CLIPVisionModel(config))


def features_of(tower: Any) -> Rows:
    """Hidden state -2; without CLIP's class token."""
    first = 0 if tower.config.model_type == "siglip_vision_model" else 1
    return lambda pixels: tower(pixels, output_hidden_states=True).hidden_states[-2][:, first:]


def mlp(vision_width: int) -> nn.Sequential:
    return randomised(nn.Sequential(nn.Linear(vision_width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)))


def write_fork(folder: Path, text: Any, tower: Any, projector: nn.Module, rope: bool = True, **config: Any) -> Path:
    """A full checkpoint: every part in one state dict under the original's names."""
    folder.mkdir(parents=True)
    holder = nn.Module()
    holder.model = nn.Module()
    holder.model.vision_tower = tower
    write_tower(folder.parent / "tower", tower.config, holder)
    state = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    state |= {f"model.mm_projector.{name}": tensor.clone() for name, tensor in projector.state_dict().items()}
    for name, tensor in tower.state_dict().items():
        below = name if name.startswith("vision_model.") else f"vision_model.{name}"
        state[f"model.vision_tower.vision_tower.{below}"] = tensor.clone()
    save_file(state, folder / "model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    fields = text.config.to_dict()
    fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
    stated = {"mm_vision_tower": "tower", "mm_vision_select_layer": -2, "mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps({**fields, **stated, "image_aspect_ratio": "pad", **config}))
    return folder


@torch.no_grad()
def require_rows(folder: Path, text: Any, rows_of: Rows) -> None:
    """Every layer over the rows that the fork's own code makes of the pixels."""
    adapter = loaded(folder)
    for sample in SAMPLES[:2]:
        batch = adapter.encode([sample])
        inputs = text.get_input_embeddings()(batch.inputs["prompts"].token_ids)
        inputs[batch.vision_mask] = rows_of(batch.inputs["pixel_values"])[0]
        states = text.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[1:]
        for ours, its in zip(our_states(adapter, sample), states, strict=True):
            assert torch.allclose(ours, its[0], atol=HIDDEN, rtol=HIDDEN), (ours - its[0]).abs().max()


def chessboard(features: Rows, sides: tuple[int, ...]) -> Rows:
    """s2wrapper's forward: squares of the smallest side, their maps joined, averaged to the smallest map, stacked."""

    def multi(pixels: Tensor) -> Tensor:
        maps = []
        for side in sides:
            large = interpolate(pixels, size=side, mode="bicubic")
            n = side // sides[0]
            tiles = [tile for line in large.chunk(n, dim=2) for tile in line.chunk(n, dim=3)]
            of_tiles = [features(tile) for tile in tiles]
            k = int(of_tiles[0].shape[1] ** 0.5)
            grid = [one.transpose(1, 2).reshape(len(pixels), -1, k, k) for one in of_tiles]
            whole = torch.cat([torch.cat(grid[row * n : row * n + n], dim=3) for row in range(n)], dim=2)
            maps.append(interpolate(whole, size=SIDE // PATCH, mode="area"))
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)

    return multi


def stablelm() -> Any:
    return tf.StableLmConfig(
        **{**WIDE, "use_qkv_bias": True, "layer_norm_eps": 1e-3, "partial_rotary_factor": 0.5, "pad_token_id": 258}
    )


OTHERS = [pytest.param(kind, marks=pytest.mark.full) for kind in ("phi3", "qwen2", "llama")]


@pytest.mark.parametrize("kind", ["phi", "stablelm", *OTHERS])
def test_bunny(tmp_path: Path, kind: str) -> None:
    text = randomised(tf.AutoModelForCausalLM.from_config(stablelm() if kind == "stablelm" else llm(kind)))
    tower, projector = tower_of(siglip()), mlp(VISION["hidden_size"])
    more: dict[str, Any] = {"partial_rotary_factor": 0.5} if kind == "phi" else {}
    if kind == "stablelm":  # Bunny's own copy of its code has other names
        more = {"rope_pct": 0.5, "norm_eps": 1e-3, "partial_rotary_factor": None, "layer_norm_eps": None}
    folder = write_fork(tmp_path / "bunny", text, tower, projector, model_type=f"bunny-{kind}", **more)
    if kind == "stablelm":
        stated = json.loads((folder / "config.json").read_text())
        kept = {name: value for name, value in stated.items() if name not in more or value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
    require_rows(folder, text, lambda pixels: projector(features_of(tower)(pixels)))


@pytest.mark.parametrize(
    ("vision", "stated", "sides"),
    [
        (siglip, {"use_s2": True}, (24, 48, 72)),
        (siglip, {"use_s2": True, "s2_scales": "48,24"}, (24, 48)),
        (clip, {"s2": True, "s2_scales": "24,48,72"}, (24, 48, 72)),
    ],
    ids=["Bunny's default", "two scales", "LLaVA-NeXT's"],
)
def test_s2(tmp_path: Path, vision: Any, stated: dict[str, Any], sides: tuple[int, ...]) -> None:
    text = randomised(tf.AutoModelForCausalLM.from_config(llm("llama")))
    tower, projector = tower_of(vision()), mlp(VISION["hidden_size"] * len(sides))
    folder = write_fork(
        tmp_path / "s2", text, tower, projector, model_type="llava_llama",
        mm_hidden_size=VISION["hidden_size"] * len(sides), **stated,
    )  # fmt: skip
    features = chessboard(features_of(tower), sides)
    require_rows(folder, text, lambda pixels: projector(features(pixels)))
    assert loaded(folder).encode(SAMPLES[:1]).inputs["pixel_values"].shape[-2:] == (sides[-1], sides[-1])


class Ldp(nn.Module):
    """LDPNetV2Projector under its own names: mlp, averages of 12 x 12, a depthwise convolution added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp, self.peg = nn.Module(), nn.Module()
        self.mlp.mlp = nn.Sequential(nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.peg.peg = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=True, groups=WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        rows = self.mlp.mlp(features)
        side = int(rows.shape[1] ** 0.5)
        grid = rows.permute(0, 2, 1).reshape(len(rows), -1, side, side)
        grid = nn.AdaptiveAvgPool2d((12, 12))(grid)
        return (self.peg.peg(grid) + grid).flatten(2).transpose(1, 2)


def test_mobilevlm_v2(tmp_path: Path) -> None:
    text = randomised(tf.AutoModelForCausalLM.from_config(llm("llama")))
    tower = tower_of(tf.CLIPVisionConfig(image_size=SIDE, patch_size=1, projection_dim=8, **VISION))  # 24 x 24 patches
    projector = randomised(Ldp(VISION["hidden_size"]))
    folder = write_fork(
        tmp_path / "MobileVLM_V2", text, tower, projector, model_type="mobilevlm", mm_projector_type="ldpnetv2",
        vision_tower_type="clip", mm_vision_select_feature="patch",
    )  # fmt: skip
    require_rows(folder, text, lambda pixels: projector(features_of(tower)(pixels)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mobilevlm", "mm_projector_type": "ldpnet"}, r"mm_projector_type.*'ldpnet'.*Convert"),
        ({"model_type": "bunny-minicpm"}, r"model_type 'bunny-minicpm'.*Convert"),
        ({"model_type": "bunny-phi3", "mm_projector_type": "minigpt"}, r"mm_projector_type.*'minigpt'.*adapter"),
        ({"s2": True, "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[24, 48]]}, r"S2 and anyres.*Convert"),
    ],
)
def test_a_part_that_is_not_read_is_refused_with_the_way_that_exists(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    text = tf.AutoModelForCausalLM.from_config(llm("llama"))
    folder = write_fork(
        tmp_path / "fork", text, tower_of(siglip()), mlp(VISION["hidden_size"]), **{"model_type": "llava", **config}
    )
    with pytest.raises(MirError, match=words):
        open_checkpoint(folder, LoadOptions(device="cpu")).inspect()


@pytest.mark.parametrize("as_on_the_hub", [True, False])
def test_tinyllava_factory_is_named(tmp_path: Path, as_on_the_hub: bool) -> None:
    config: dict[str, Any] = {
        "model_type": "tinyllava", "architectures": ["TinyLlavaForConditionalGeneration"], "hidden_size": WIDTH,
        "connector_type": "mlp2x_gelu", "llm_model_name_or_path": "microsoft/phi-2", "vocab_size": N_EMBEDDINGS,
        "vision_model_name_or_path": "google/siglip-so400m-patch14-384", "vision_feature_select_strategy": "patch",
    }  # fmt: skip
    if as_on_the_hub:
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_tinyllava_phi.TinyLlavaForConditionalGeneration"}
        save_file({"connector._connector.0.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    else:
        for part in ("language_model", "vision_tower", "connector"):
            (tmp_path / part).mkdir()
            torch.save({"0.weight": torch.ones(2, 2)}, tmp_path / part / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MirError, match=r"TinyLLaVA Factory.*LlavaForConditionalGeneration.*own-model") as error:
        open_checkpoint(tmp_path, LoadOptions(device="cpu")).inspect()
    assert "\n" not in str(error.value)
