"""The released script's own trace terms, step by step. For parity tests only: imported by name, never a default.

Source: Modality-Integration-Rate commit 07070b9, mir_util.py lines 9-76.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_fast_root(product: Tensor, n_iterations: int = 5) -> Tensor:
    """The "square root" of the script's default mode: five inverse iterations on Σ_v Σ_t, (d, d) → (d, d).

    It solves Y = ½(Y + Z⁻¹P), Z = ½(Z + Y⁻¹P) from Y = P, Z = I. There Z⁻¹P = P and Y⁻¹P = I, so the start is a fixed
    point: in exact arithmetic the product itself comes back, not its root. In float32 the iteration drifts.
    """
    y, z = product, torch.eye(len(product), dtype=product.dtype, device=product.device)
    for _ in range(n_iterations):
        y = (y + torch.linalg.inv(z) @ product) / 2
        z = (z + torch.linalg.inv(y) @ product) / 2
    return y


def reference_fast_distance(vision: Tensor, text: Tensor) -> float:
    """The script's default layer value from prepared features, (tokens, d) each, in their own dtype."""
    vision_centred, text_centred = vision - vision.mean(dim=0), text - text.mean(dim=0)
    vision_cov = vision_centred.T @ vision_centred / (len(vision) - 1)
    text_cov = text_centred.T @ text_centred / (len(text) - 1)
    mean_term = (vision.mean(dim=0) - text.mean(dim=0)).square().sum()
    root = reference_fast_root(vision_cov @ text_cov)
    return (mean_term + vision_cov.trace() + text_cov.trace() - 2 * root.trace()).item()
