"""Our own plain version of the published procedure, to measure against: correct, and written without any care for cost.

One sample at a time through the whole model, attentions and logits included; hidden states of all layers of all samples
kept; then layer by layer normalization, outlier replacement, covariances in float32 and a matrix square root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from mir_plugin.metric.reference import reference_fast_distance
from mir_plugin.samples.sample_set import Sample


def published_mir(adapter: Any, samples: Sequence[Sample], *, accurate: bool) -> float | None:
    """MIR of a loaded LLaVA checkpoint; ``accurate`` takes scipy's square root, else the five inverse iterations.

    None where the sum of the distances has no logarithm.
    """
    base_llm = adapter.model.base_llm
    base_llm.set_attn_implementation("eager")  # the only one that returns attentions
    n_layers = len(adapter.decoder.layers)
    vision: list[list[Tensor]] = [[] for _ in range(n_layers)]
    text: list[list[Tensor]] = [[] for _ in range(n_layers)]
    for sample in samples:
        batch = adapter.encode([sample])
        prompts = batch.inputs["prompts"]
        with torch.no_grad(), adapter.bound_to(batch):
            outputs = base_llm(
                inputs_embeds=adapter.model.embed(prompts, batch.inputs["pixel_values"]),
                attention_mask=prompts.attention_mask,
                output_hidden_states=True,
                output_attentions=True,
                use_cache=False,
            )
        for k, states in enumerate(outputs.hidden_states[1:]):
            vision[k].append(states[batch.vision_mask])
            text[k].append(states[batch.text_mask])
    distances = [_distance(torch.cat(v), torch.cat(t), accurate) for v, t in zip(vision, text, strict=True)]
    total = sum(distances)
    return math.log10(total) if total > 0 else None


def _distance(vision: Tensor, text: Tensor, accurate: bool) -> float:
    scale = 1 / text.norm(dim=1).mean()
    vision, text = _without_outliers(vision * scale), _without_outliers(text * scale)
    if not accurate:
        return float(reference_fast_distance(vision, text))
    vision_cov, text_cov = torch.cov(vision.t()), torch.cov(text.t())
    root = scipy.linalg.sqrtm((vision_cov @ text_cov).double().cpu().numpy())
    mean_term = (vision.mean(dim=0) - text.mean(dim=0)).square().sum()
    return float(mean_term + vision_cov.trace() + text_cov.trace() - 2 * root.real.trace())


def _without_outliers(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1)
    outliers = (norms - norms.median()).abs() > 3 * norms.std()
    return torch.where(outliers[:, None], rows.median(dim=0).values, rows)
