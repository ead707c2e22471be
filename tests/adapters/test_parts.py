"""Original layouts with today's parts give the hidden states of transformers' own models, single images of odd sizes.

The original code is not needed: transformers' classes were checked against it when they were added, and their published
conversion rules are turned round here. Pixels come from our preprocessing on both sides, and from transformers' own in
``test_views_are_those_of_transformers``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from adapters.original_layouts import (
    N_EMBEDDINGS,
    PATCH,
    PINPOINTS,
    SIDE,
    clip,
    llm,
    original_names,
    randomised,
    siglip,
    write_original,
)
from PIL import Image

from mir_plugin import modality_integration_rate
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.results import MirConfig
from mir_plugin.samples.sample_set import Sample, SampleSet

from tolerances import FORWARD

pytestmark = pytest.mark.slow

# (width, height): wide, tall, square, larger and smaller than the tower, odd. None is a tie between two resolutions,
# which transformers and the original break differently, as they list height and width in another order.
SIZES = ((61, 37), (37, 61), (131, 43), (43, 131), (97, 97), (53, 51), (199, 101), (75, 25), (29, 83), (255, 241))
# Float32 forward passes of the same operations; merged rows are added in the same order.
HIDDEN = 1e-4


def photograph(size: tuple[int, int]) -> Image.Image:
    """Smooth colours with noise on them, so that every patch differs."""
    width, height = size
    noise = np.random.default_rng(width * 1000 + height).integers(0, 90, (height, width, 3))
    x, y = np.linspace(0, 160, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    return Image.fromarray((noise + x * y).astype(np.uint8))


SAMPLES = [Sample(str(size), photograph(size), f"A picture of {size[0]} by {size[1]}, it seems.") for size in SIZES]


def loaded(folder: Path) -> Any:
    return open_checkpoint(folder, LoadOptions(device="cpu")).load()


def their_states(model: Any, adapter: Any, sample: Sample) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Layers' hidden states (tokens, d) of transformers' model on the ids and pixels of our batch, and both masks."""
    batch = adapter.encode([sample])
    prompts = batch.inputs["prompts"]
    ids = prompts.token_ids.masked_fill(prompts.vision_mask, model.config.image_token_id)
    pixels = batch.inputs["pixel_values"]
    width, height = sample.open_image().size
    more = {} if model.config.model_type == "llava" else {"image_sizes": torch.tensor([[height, width]])}
    with torch.no_grad():
        states = model.model(
            input_ids=ids, pixel_values=pixels if not more else pixels[None], output_hidden_states=True, **more
        ).hidden_states
    return [one[0] for one in states[1:]], batch.vision_mask[0], batch.text_mask[0]


def our_states(adapter: Any, sample: Sample) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in adapter.decoder.layers
    ]
    try:
        last = adapter.forward(adapter.encode([sample]))
    finally:
        for hook in hooks:
            hook.remove()
    return [one[0] for one in (*states[1:], last)]


def require_equal(model: Any, adapter: Any) -> None:
    """Hidden states of every layer and sample, then MIR over all samples."""
    theirs = [their_states(model, adapter, sample) for sample in SAMPLES]
    for sample, (states, _, _) in zip(SAMPLES, theirs, strict=True):
        for k, (ours, its) in enumerate(zip(our_states(adapter, sample), states, strict=True)):
            assert torch.allclose(ours, its, atol=HIDDEN, rtol=HIDDEN), (sample.sample_id, k, (ours - its).abs().max())
    layers = list(zip(*(states for states, _, _ in theirs), strict=True))
    vision = [torch.cat([one[mask] for one, (_, mask, _) in zip(layer, theirs, strict=True)]) for layer in layers]
    text = [torch.cat([one[mask] for one, (_, _, mask) in zip(layer, theirs, strict=True)]) for layer in layers]
    right = float(modality_integration_rate(vision, text))
    found = measure(adapter, SampleSet(tuple(SAMPLES), {}), MirConfig(), checkpoint="tiny", with_uncertainty=False).mir
    assert math.isclose(found, right, rel_tol=FORWARD, abs_tol=FORWARD)


def llava(kind: str, vision: Any, **config: Any) -> Any:
    text = llm(kind)
    strategy = "full" if vision.model_type == "siglip_vision_model" else "default"
    return randomised(
        tf.LlavaForConditionalGeneration(
            tf.LlavaConfig(
                vision_config=vision, text_config=text, image_token_index=N_EMBEDDINGS - 1, vision_feature_layer=-2,
                vision_feature_select_strategy=strategy, **config,
            )
        )
    )  # fmt: skip


@pytest.mark.parametrize("tower", [clip, siglip])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi", "phi3"])
def test_a_base_llm_with_a_tower(tmp_path: Path, kind: str, tower: Any) -> None:
    model = llava(kind, tower())
    folder = write_original(tmp_path / "checkpoint", model, llm(kind), tower())
    require_equal(model, loaded(folder))


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_gemma_multiplies_the_projectors_rows_as_it_did_when_checkpoints_were_trained(
    tmp_path: Path, kind: str
) -> None:
    model = llava(kind, clip())
    folder = write_original(tmp_path / "checkpoint", model, llm(kind), clip())
    scale = llm(kind).hidden_size ** 0.5
    if hasattr(model.model.language_model.embed_tokens, "embed_scale"):  # then transformers leaves the rows alone
        with torch.no_grad():
            for parameter in model.model.multi_modal_projector.linear_2.parameters():
                parameter *= scale
    require_equal(model, loaded(folder))


def llava_next() -> Any:
    return randomised(
        tf.LlavaNextForConditionalGeneration(
            tf.LlavaNextConfig(
                vision_config=clip(), text_config=llm("llama"), image_token_index=N_EMBEDDINGS - 1,
                vision_feature_layer=-2,
                image_grid_pinpoints=[(height, width) for width, height in PINPOINTS],
            )
        )
    )  # fmt: skip


def onevision(limit: int) -> Any:
    return randomised(
        tf.LlavaOnevisionForConditionalGeneration(
            tf.LlavaOnevisionConfig(
                vision_config=siglip(), text_config=llm("qwen2"), image_token_index=N_EMBEDDINGS - 1,
                vision_feature_layer=-2,
                vision_feature_select_strategy="full", vision_aspect_ratio=f"anyres_max_{limit}",
                image_grid_pinpoints=[(height, width) for width, height in PINPOINTS],
            )
        )
    )  # fmt: skip


ANYRES = {"image_grid_pinpoints": [list(size) for size in PINPOINTS], "mm_patch_merge_type": "spatial_unpad"}


def test_llava_1_6(tmp_path: Path) -> None:
    model = llava_next()
    folder = write_original(tmp_path / "checkpoint", model, llm("llama"), clip(), image_aspect_ratio="anyres", **ANYRES)
    require_equal(model, loaded(folder))


@pytest.mark.parametrize("limit", [1, 9])
def test_onevision(tmp_path: Path, limit: int) -> None:
    model = onevision(limit)
    folder = write_original(
        tmp_path / "checkpoint", model, llm("qwen2"), siglip(),
        model_type="llava_qwen", image_aspect_ratio=f"anyres_max_{limit}", **ANYRES,
    )  # fmt: skip
    adapter = loaded(folder)
    require_equal(model, adapter)
    assert adapter.facts["vision_tower_kind"] == "SigLIP"


def test_views_are_those_of_transformers(tmp_path: Path) -> None:
    model = llava_next()
    folder = write_original(tmp_path / "checkpoint", model, llm("llama"), clip(), image_aspect_ratio="anyres", **ANYRES)
    adapter = loaded(folder)
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    pinpoints = [[height, width] for width, height in PINPOINTS]
    theirs = tf.models.llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil(
        image_grid_pinpoints=pinpoints, resample=3, **settings
    )
    for sample in SAMPLES:
        image = sample.open_image()
        expected = theirs(image, return_tensors="pt").pixel_values[0]
        assert torch.equal(adapter.preprocessor([image]), expected), sample.sample_id


def test_a_tower_saved_by_llava_next_lacks_the_layer_it_cut_off(tmp_path: Path) -> None:
    model = llava("qwen2", siglip())
    whole = write_original(tmp_path / "whole" / "checkpoint", model, llm("qwen2"), siglip())
    short = write_original(tmp_path / "short" / "checkpoint", model, llm("qwen2"), siglip())
    from safetensors.torch import save_file

    last = ".encoder.layers.2."
    save_file({name: t for name, t in original_names(model).items() if last not in name}, short / "model.safetensors")
    one, other = (loaded(folder).forward(loaded(folder).encode(SAMPLES[:1])) for folder in (whole, short))
    assert torch.equal(one, other)


def projector_only(folder: Path, checkpoint: Path, model: Any, **config: Any) -> Path:
    """Stage 1: a folder with the projector, and the same in its checkpoint-2; the base LLM apart."""
    base = folder / "base"
    model.model.language_model.save_pretrained(base)
    names = original_names(model)
    from safetensors.torch import save_file

    llm_names = {
        n: t for n, t in names.items() if n.startswith(("model.layers", "model.embed", "model.norm", "lm_head"))
    }
    save_file(llm_names, base / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((checkpoint / name).read_bytes())
    stated = json.loads((checkpoint / "config.json").read_text()) | {"_name_or_path": str(base)} | config
    for place in (folder, folder / "checkpoint-2"):
        place.mkdir(parents=True, exist_ok=True)
        torch.save({n: t for n, t in names.items() if "mm_projector" in n}, place / "mm_projector.bin")
        (place / "config.json").write_text(json.dumps(stated))
    return folder


def test_stage_one_and_its_checkpoints_give_the_numbers_of_the_whole(tmp_path: Path) -> None:
    model = llava("qwen2", siglip())
    whole = write_original(tmp_path / "checkpoint", model, llm("qwen2"), siglip(), model_type="llava_qwen")
    folder = projector_only(tmp_path / "pretrain", whole, model, mm_vision_tower=str(tmp_path / "tower"))
    expected = loaded(whole).forward(loaded(whole).encode(SAMPLES[:2]))
    for place in (folder, folder / "checkpoint-2"):
        adapter = loaded(place)
        assert torch.equal(adapter.forward(adapter.encode(SAMPLES[:2])), expected)


def test_stage_one_without_the_newline_it_needs_is_refused(tmp_path: Path) -> None:
    model = llava_next()
    whole = write_original(tmp_path / "checkpoint", model, llm("llama"), clip(), image_aspect_ratio="anyres", **ANYRES)
    folder = projector_only(tmp_path / "pretrain", whole, model, mm_vision_tower=str(tmp_path / "tower"))
    with pytest.raises(MirError, match=r"image_newline.*--base-llm"):
        open_checkpoint(folder, LoadOptions(device="cpu")).inspect()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_aspect_ratio": "highres"}, r"image_aspect_ratio.*highres.*adapter of your own"),
        ({"mm_projector_type": "spp"}, r"mm_projector_type.*spp.*ldpnetv2"),
        ({"mm_patch_merge_type": "spatial_maxpool2x2"}, r"mm_patch_merge_type.*maxpool2x2"),
        ({"model_type": "llava_rwkv9"}, r"model_type 'llava_rwkv9'.*Convert"),
        ({"s2": True, "s2_scales": "24,50"}, r"s2_scales.*24,50.*multiples"),
    ],
)
def test_what_is_not_read_is_refused_by_inspect_and_by_loading(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write_original(tmp_path / "checkpoint", llava("llama", clip()), llm("llama"), clip(), **config)
    checkpoint = open_checkpoint(folder, LoadOptions(device="cpu"))
    for attempt in (checkpoint.inspect, checkpoint.load):
        with pytest.raises(MirError, match=message):
            attempt()


def test_a_picture_of_many_tiles_has_as_many_rows_as_are_counted(tmp_path: Path) -> None:
    model = onevision(1)
    folder = write_original(
        tmp_path / "checkpoint", model, llm("qwen2"), siglip(),
        model_type="llava_qwen", image_aspect_ratio="anyres_max_1", **ANYRES,
    )  # fmt: skip
    adapter = loaded(folder)
    side = SIDE // PATCH
    for sample in SAMPLES:
        n_rows = int(adapter.encode([sample]).vision_mask.sum())
        assert side**2 < n_rows <= side**2 * (1 + 1.1**2) + 2 * side
