"""A tiny random model of every image-text type that transformers has: measured as NumPy says, or refused as written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from adapters.every_type import (
    MEASURED,
    PAGE,
    SAMPLES,
    measured,
    random_model,
    row_of,
    rows_of_page,
    tiny_adapter,
    tiny_model,
    version_of_page,
)
from adapters.tiny_configs import MODEL_TYPES, tiny_config

from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter

pytestmark = pytest.mark.slow

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = rows_of_page(TEXT)
IS_VERSION_OF_PAGE = transformers.__version__ == version_of_page(TEXT)
MEASURED_TYPES = sorted(name for name, row in ROWS.items() if row.status == MEASURED and name in MODEL_TYPES)
OTHER_TYPES = sorted(name for name, row in ROWS.items() if row.status != MEASURED and name in MODEL_TYPES)

# Image positions that hold learned vectors, the same for every image: ends of rows and of the image.
N_SEPARATORS = {
    "deepseek_ocr2": 1,
    "granite4_vision": 4,
    "hunyuan_vl": 4,
    "llava_next": 8,
    "llava_next_video": 8,
    "llava_onevision": 8,
    "unlimited_ocr": 2,
}
# Embeddings of image codes: where two images have the same code, they have the same vector.
OF_CODES = {"chameleon", "emu3"}


@dataclass(frozen=True)
class Tiny:
    """A model that is measured, and the adapter around it."""

    model_type: str
    model: Any
    adapter: HuggingFaceAdapter


@pytest.fixture(scope="module", params=MEASURED_TYPES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    if not IS_VERSION_OF_PAGE and (row := row_of(request.param)).status != MEASURED:
        pytest.skip(f"{row.status} with transformers {transformers.__version__}: {row.reason}")
    model = tiny_model(request.param)
    return Tiny(request.param, model, tiny_adapter(model, request.param))


@pytest.mark.skipif(not IS_VERSION_OF_PAGE, reason="the page is of another version of transformers")
def test_the_page_has_every_type_and_no_other() -> None:
    assert sorted(ROWS) == sorted(MODEL_TYPES)


def test_every_layers_distance_is_what_numpy_computes_from_output_hidden_states(tiny: Tiny) -> None:
    assert_as_numpy_computes(tiny)


@pytest.mark.skipif("gemma4" not in MODEL_TYPES, reason="transformers is older than Gemma 4")
def test_a_language_model_that_drops_positions_before_its_last_layers_is_measured_on_all_of_them() -> None:
    config = tiny_config("gemma4")
    config.text_config.num_kv_shared_layers = 2
    model = random_model("gemma4", config)
    assert_as_numpy_computes(Tiny("gemma4", model, tiny_adapter(model, "gemma4")))


def assert_as_numpy_computes(tiny: Tiny) -> None:
    result = measured(tiny.adapter)
    vision, text = plain_features(tiny)
    assert len(result.layers) == len(vision) == 4
    for layer, v, t in zip(result.layers, vision, text, strict=True):
        # The same float32 features; statistics in float64, with fewer tokens than dimensions in places.
        assert layer.distance == pytest.approx(numpy_distance(v, t), rel=1e-6)


def test_another_image_changes_the_first_layers_input_at_the_vision_tokens_alone(tiny: Tiny) -> None:
    batch, other = tiny.adapter.encode(SAMPLES[:1]), tiny.adapter.encode(SAMPLES[1:2])
    pixels = {name: value for name, value in other.inputs.items() if "pixel" in name}
    first, second = (first_layer_input(tiny, inputs) for inputs in (batch.inputs, {**batch.inputs, **pixels}))
    changed = (first != second).any(dim=-1).view(batch.vision_mask.shape)
    assert not (changed & ~batch.vision_mask).any()
    if tiny.model_type in OF_CODES:
        assert changed.any()
    else:
        assert changed.sum() == batch.vision_mask.sum() - N_SEPARATORS.get(tiny.model_type, 0)


@pytest.mark.skipif(not IS_VERSION_OF_PAGE, reason="the page is of another version of transformers")
@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_a_type_that_is_not_measured_is_refused_as_the_page_says(model_type: str) -> None:
    assert row_of(model_type) == ROWS[model_type]


def plain_features(tiny: Tiny) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Vision and text tokens of layers 1..L, from whole forward passes of the model itself."""
    vision: list[list[np.ndarray]] = []
    text: list[list[np.ndarray]] = []
    for sample in SAMPLES:
        batch = tiny.adapter.encode([sample])
        with torch.no_grad():
            output = tiny.model(**batch.inputs, output_hidden_states=True)
        states = getattr(output, "language_model_outputs", output).hidden_states[1:]
        vision.append([state[batch.vision_mask].double().numpy() for state in states])
        text.append([state[batch.text_mask].double().numpy() for state in states])
    return of_all_samples(vision), of_all_samples(text)


def of_all_samples(by_sample: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(layer) for layer in zip(*by_sample, strict=True)]


def numpy_distance(vision: np.ndarray, text: np.ndarray) -> float:
    """Squared Fréchet distance of a layer, as the paper states it; float64."""
    alpha = 1 / np.linalg.norm(text, axis=1).mean()
    (mean_v, cov_v), (mean_t, cov_t) = (gaussian(without_outliers(tokens * alpha)) for tokens in (vision, text))
    values, vectors = np.linalg.eigh(cov_v)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_t @ root).clip(0)).sum()
    return float(((mean_v - mean_t) ** 2).sum() + np.trace(cov_v) + np.trace(cov_t) - 2 * cross)


def gaussian(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tokens.mean(axis=0), np.cov(tokens, rowvar=False)


def without_outliers(tokens: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(tokens, axis=1)
    middle = np.sort(norms)[(len(norms) - 1) // 2]
    coordinates = np.sort(tokens, axis=0)[(len(tokens) - 1) // 2]
    is_outlier = np.abs(norms - middle) > 3 * norms.std(ddof=1)
    return np.where(is_outlier[:, None], coordinates, tokens)


def first_layer_input(tiny: Tiny, inputs: dict[str, Any]) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = tiny.adapter.decoder.layers[0].register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        tiny.model(**inputs)
    hook.remove()
    return seen[0]
