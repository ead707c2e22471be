"""A processor of tensors for any image-text model: a byte tokenizer, and pixels of the shape that the model takes.

transformers' own processors need files of a published checkpoint. What they hand to a model is made here directly: one
picture as random numbers, as many image tokens in the text as the model makes features of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from adapters.tiny_configs import IMAGE_SIZE, IMAGE_TOKEN, PATCH_SIZE
from adapters.tiny_models import tiny_tokenizer
from torch import Tensor

SIDE = IMAGE_SIZE // PATCH_SIZE  # patches along a side of the image
N_PATCHES = SIDE**2
GRID = torch.tensor([[1, SIDE, SIDE]])  # frames, rows and columns of patches
PIXELS = (1, 3, IMAGE_SIZE, IMAGE_SIZE)
Tensors = dict[str, Tensor]


def _patches(n_frames: int = 1, n_channels: int = 3) -> Tensors:
    return {"pixel_values": torch.randn(N_PATCHES, n_channels * n_frames * PATCH_SIZE**2), "image_grid_thw": GRID}


def _square_patches() -> Tensors:
    return {"pixel_values": torch.randn(N_PATCHES, 3, PATCH_SIZE, PATCH_SIZE), "image_grid_thw": GRID}


def _one_of_several() -> Tensors:
    return {"pixel_values": torch.randn(1, *PIXELS)}


def _with_size() -> Tensors:
    return {"pixel_values": torch.randn(PIXELS), "image_sizes": torch.tensor([[IMAGE_SIZE, IMAGE_SIZE]])}


def _tiles() -> Tensors:
    """A picture of 2 x 2 tiles, and the whole of it before them."""
    return {"pixel_values": torch.randn(1, 5, *PIXELS[1:]), "image_sizes": 2 * torch.tensor([[IMAGE_SIZE, IMAGE_SIZE]])}


def _with_positions() -> Tensors:
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    return {"pixel_values": torch.rand(1, N_PATCHES, 3 * PATCH_SIZE**2), "image_position_ids": places[None]}


def _strip() -> Tensors:
    """Patches side by side in one strip."""
    pixels = torch.randn(1, 3, PATCH_SIZE, N_PATCHES * PATCH_SIZE)
    return {"pixel_values": pixels, "target_sizes": torch.tensor([[SIDE, SIDE]])}


SHAPES: Mapping[str, Callable[[], Tensors]] = {
    "deepseek_vl_hybrid": lambda: {"pixel_values": torch.randn(PIXELS), "high_res_pixel_values": torch.randn(PIXELS)},
    **dict.fromkeys(("emu3", "lighton_ocr", "mistral3", "mistral_large4"), _with_size),
    "fuyu": lambda: {"pixel_values": torch.randn(1, N_PATCHES, 3 * PATCH_SIZE**2)},
    "gemma3n": lambda: {"pixel_values": torch.randn(1, 3, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)},
    **dict.fromkeys(("gemma4", "gemma4_unified", "diffusion_gemma"), _with_positions),
    "granite4_vision": _tiles,
    "granite_docling": lambda: _one_of_several() | {"pixel_attention_mask": torch.ones(1, 1).bool()},
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), _one_of_several),
    "inkling2": lambda: {
        "pixel_values": torch.randn(N_PATCHES, 2 * PATCH_SIZE, 2 * PATCH_SIZE, 3),
        "image_grid_thw": GRID,
    },
    "inkling_mm_model": lambda: {"pixel_values": torch.randn(16, 2, PATCH_SIZE, PATCH_SIZE, 3)},
    **dict.fromkeys(("kimi_k25", "paddleocr_vl"), _square_patches),
    "lfm2_vl": lambda: {
        "pixel_values": torch.randn(1, N_PATCHES, 3 * PATCH_SIZE**2),
        "spatial_shapes": torch.tensor([[SIDE, SIDE]]),
        "pixel_attention_mask": torch.ones(1, N_PATCHES).long(),
    },
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _tiles),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _strip),
    "molmo2": lambda: {
        "pixel_values": torch.randn(1, N_PATCHES, 3 * PATCH_SIZE**2),
        "image_token_pooling": torch.arange(N_PATCHES).view(4, 4),
        "image_grids": torch.tensor([[1, 2, 1, 2]]),
    },
    "nemotron_h_omni": lambda: {
        "pixel_values": torch.randn(N_PATCHES, 3 * PATCH_SIZE**2),
        "image_grid_hw": torch.tensor([[SIDE, SIDE]]),
    },
    "perception_lm": lambda: {"pixel_values": torch.randn(1, 1, 3, 160, 160)},
    "video_llama_3": lambda: _patches() | {"image_merge_sizes": torch.tensor([1])},
}


def image_tensors(model: Any, model_type: str, seed: int) -> dict[str, Tensor]:
    """What the model takes of one image, besides its positions in the text."""
    taken = inspect.signature(model.forward).parameters
    vision = getattr(model.config, "vision_config", model.config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if model_type in SHAPES:
            return SHAPES[model_type]()
        if "image_grid_thw" in taken:
            return _patches(
                getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", 1)),
                getattr(vision, "in_channels", getattr(vision, "num_channels", 3)),
            )
        tensors = {"pixel_values": torch.randn(PIXELS)}
        if "qformer_input_ids" in taken:
            ones = torch.ones(1, 4).long()
            tensors |= {"qformer_input_ids": ones, "qformer_attention_mask": ones}
        return tensors


class TensorProcessor:
    """Stands for a transformers processor in front of ``HuggingFaceAdapter``."""

    chat_template = None
    image_token = "<image>"

    def __init__(self, model: Any, model_type: str, n_image_tokens: int) -> None:
        self.tokenizer = tiny_tokenizer({"image_token": "<image>"})
        self.image_processor = SimpleNamespace()
        self.image_token_id = IMAGE_TOKEN
        self.qformer_tokenizer = tiny_tokenizer()
        self._model, self._model_type, self._n_image_tokens = model, model_type, n_image_tokens

    def __call__(self, text: Sequence[str], images: Sequence[Any], suffix: Sequence[str] = ("",), **_: Any) -> Any:
        """One conversation with one image; the image's size is the seed of its tensors."""
        [said], [answer], [[image]] = text, suffix, images
        block = "<image>" * self._n_image_tokens
        said = said.replace("<image>", block) if "<image>" in said else block + said
        ids = self.tokenizer(said + answer, return_tensors="pt")["input_ids"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        is_image = (ids == IMAGE_TOKEN).long()
        taken = inspect.signature(self._model.forward).parameters
        inputs |= {name: is_image for name in ("mm_token_type_ids", "token_type_ids") if name in taken}
        return inputs | image_tensors(self._model, self._model_type, seed=image.width)
