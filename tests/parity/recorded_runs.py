"""The recorded MIR values of the original programs, in one shape, whatever family they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden_data import require_golden

LLAVA = ("full", "projector", "linear", "mlp4x", "lora", "moca", "moca_projector", "unlock", "qformer")
SHAREGPT4V = ("published", "full", "pretrain", "projector")
MINI_GEMINI = ("full", "projector", "hd", "full_opt")


@dataclass(frozen=True)
class RecordedLayer:
    """One layer as recorded.

    ``published`` is Tr(Σ_v Σ_t) used as the trace term, in float64; ``fast`` and ``accurate`` are the released
    script's two modes, in float32. ``fast_noise`` is how far ``fast`` was seen to move under a reordering of the
    features or a change of the hidden states by 1e-6.
    """

    exact: float
    fast: float
    accurate: float
    fast_noise: float
    outliers: tuple[int, int]
    scale: float
    published: float | None
    removed: float | None
    kept: float | None
    unnormalized: float | None


@dataclass(frozen=True)
class RecordedRun:
    """One checkpoint of a golden case, loaded in one way."""

    name: str
    folder: Path
    checkpoint: Path
    base_llm: Path | None
    vision_tower: Path | None
    layers: tuple[RecordedLayer, ...]
    mir_exact: float
    mir_fast: float
    mir_accurate: float


def recorded_runs() -> Iterator[RecordedRun]:
    """Every recorded run."""
    for name in LLAVA:
        folder = require_golden(f"llava/llava_{name}")
        yield _llava_run(f"llava_{name}", folder, "expected.json", folder / "model")
        if (folder / "expected_checkpoint-20.json").is_file():
            checkpoint = folder / "model" / "checkpoint-20"
            yield _llava_run(f"llava_{name}/checkpoint-20", folder, "expected_checkpoint-20.json", checkpoint)
    for name in SHAREGPT4V:
        folder = require_golden(f"sharegpt4v/share4v_{name}")
        # The original loader takes the tower that the config names; ours takes the trained one unless told.
        yield _llava_run(
            f"share4v_{name}", folder, "expected.json", folder / "model", vision_tower=folder / "vision_tower"
        )
        if (folder / "expected_tuned_tower.json").is_file():
            yield _llava_run(f"share4v_{name}, tuned tower", folder, "expected_tuned_tower.json", folder / "model")
    for name in MINI_GEMINI:
        yield _mini_gemini_run(f"mgm_{name}", require_golden(f"mini_gemini/mgm_{name}"))


def _llava_run(
    name: str, folder: Path, expected_name: str, checkpoint: Path, vision_tower: Path | None = None
) -> RecordedRun:
    expected = _read(folder / expected_name)
    overall = expected["overall"]
    needs_base = expected["load"]["model_base"] is not None
    return RecordedRun(
        name,
        folder,
        checkpoint,
        folder / "base_llm" if needs_base else None,
        vision_tower,
        tuple(_llava_layer(layer, expected) for layer in expected["layers"]),
        overall["float64_exact"]["mir"],
        overall["fast"]["mir"],
        overall["accurate"]["mir"],
    )


def _llava_layer(layer: dict[str, Any], expected: dict[str, Any]) -> RecordedLayer:
    float64 = layer["float64"]
    if "sensitivity" in expected:
        fast_noise = expected["sensitivity"]["max_abs_change_mir_or_layer_value"]["fast"]
    else:
        seen = layer["fast_stability"]
        fast_noise = seen["feature_permutations_float32_max"] - seen["feature_permutations_float32_min"]
    return RecordedLayer(
        exact=float64["exact"],
        fast=layer["fast"],
        accurate=layer["accurate"],
        fast_noise=fast_noise,
        outliers=(layer["outliers_vision"], layer["outliers_text"]),
        scale=layer["scale_factor"],
        # ShareGPT4V's record names the same quantity after how it was made: the fast function on float64 input.
        published=float64.get("trace_product_instead_of_sqrt", layer.get("fast_float64")),
        removed=float64.get("exact_outliers_removed"),
        kept=float64.get("exact_outliers_kept"),
        unnormalized=float64.get("exact_without_text_centric_normalization"),
    )


def _mini_gemini_run(name: str, folder: Path) -> RecordedRun:
    expected = _read(folder / "expected.json")
    values = expected["mir"]
    noise = values["max_relative_change_under_1e-6_relative_noise_on_hidden_states"]["fast"]
    layers = tuple(
        RecordedLayer(
            exact, fast, accurate, noise * fast, (info["vision_outliers"], info["text_outliers"]), info["scale_factor"],
            published=None, removed=None, kept=None, unnormalized=None,
        )
        for exact, fast, accurate, info in zip(
            values["exact_float64"]["per_layer"],
            values["fast"]["per_layer"],
            values["accurate"]["per_layer"],
            values["per_layer_info"],
            strict=True,
        )
    )  # fmt: skip
    return RecordedRun(
        name,
        folder,
        folder / "model",
        folder / "base_llm" if expected["model_base"] else None,
        None,
        layers,
        values["exact_float64"]["overall_log10"],
        values["fast"]["overall_log10"],
        values["accurate"]["overall_log10"],
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
