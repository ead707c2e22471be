"""MIR of a loaded model without this package's engine and metric: plain forward passes, then numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mir_plugin.samples.sample_set import Sample


def independent_layers(model: Any, adapter: Any, samples: Sequence[Sample]) -> list[float]:
    """Each layer's distance; of the adapter only the prompt is taken."""
    vision, text = hidden_states(model, adapter, samples)
    return [frechet(*map(without_outliers, scaled(v, t))) for v, t in zip(vision, text, strict=True)]


def hidden_states(model: Any, adapter: Any, samples: Sequence[Sample]) -> tuple[list[Any], list[Any]]:
    """Vision and text tokens of every layer, (tokens, d) each, as ``output_hidden_states`` gives them."""
    image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    vision: list[list[Any]] = []
    text: list[list[Any]] = []
    for sample in samples:
        inputs = adapter.encode([sample]).inputs
        is_image = (inputs["input_ids"][0] == image_token).numpy()
        behind = np.arange(len(is_image)) > np.flatnonzero(is_image)[-1]
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True, use_cache=False)
        states = getattr(output, "language_model_outputs", output).hidden_states[1:]
        tokens = [state[0].double().numpy() for state in states]
        vision.append([layer[is_image] for layer in tokens])
        text.append([layer[behind] for layer in tokens])
    return [np.concatenate(rows) for rows in zip(*vision, strict=True)], [
        np.concatenate(rows) for rows in zip(*text, strict=True)
    ]


def scaled(vision: Any, text: Any) -> tuple[Any, Any]:
    """Both in units of the text tokens' mean norm."""
    scale = 1 / np.linalg.norm(text, axis=1).mean()
    return vision * scale, text * scale


def without_outliers(tokens: Any) -> Any:
    """Rows whose norm is more than three standard deviations from the median norm become the median row."""
    norms = np.linalg.norm(tokens, axis=1)
    middle = (len(norms) - 1) // 2  # the lower of two
    outliers = np.abs(norms - np.sort(norms)[middle]) > 3 * norms.std(ddof=1)
    return np.where(outliers[:, None], np.sort(tokens, axis=0)[middle], tokens)


def frechet(vision: Any, text: Any) -> float:
    """Squared Fréchet distance of the two Gaussians."""
    vision_cov, text_cov = np.cov(vision, rowvar=False), np.cov(text, rowvar=False)
    values, vectors = np.linalg.eigh(vision_cov)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ text_cov @ root).clip(0)).sum()
    mean = vision.mean(0) - text.mean(0)
    return float(mean @ mean + np.trace(vision_cov) + np.trace(text_cov) - 2 * trace)
