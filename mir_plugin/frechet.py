"""Squared Fréchet distance between two Gaussians, and its exact trace term."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mir_plugin.moments import Moments


class TraceTerm(NamedTuple):
    """Tr((Σ_v Σ_t)^½), scalar float64, and the route it was computed by."""

    value: Tensor
    route: str


def mean_term(vision: Moments, text: Moments) -> Tensor:
    """‖μ_v − μ_t‖², scalar float64."""
    return (vision.mean - text.mean).square().sum()


def trace_product(vision: Moments, text: Moments) -> Tensor:
    """Tr(Σ_v Σ_t) as one inner product of the two symmetric matrices, scalar float64."""
    return (vision.cov * text.cov).sum()


def trace_term(vision: Moments, text: Moments) -> TraceTerm:
    """Tr((Σ_v Σ_t)^½) by the cheapest exact route; symmetric throughout, so there is no complex part to discard.

    With roots R (RᵀR = Σ) the term is the sum of the singular values of R_v R_tᵀ. Routes, by what is available:

    * "cross": fewer tokens than dimensions in both modalities; singular values of the (n_v, n_t) cross matrix.
    * "gram": in one of them; eigenvalues of R Σ Rᵀ, (n, n), R being the smaller modality's root.
    * "cholesky": in neither; eigenvalues of Lᵀ Σ_t L with L Lᵀ = Σ_v, (d, d).
    * "eigh": the same with a symmetric square root, where Cholesky finds Σ_v singular.

    Negative eigenvalues are rounding (the matrices are positive semi-definite) and count as 0.
    """
    if vision.root is not None and text.root is not None:
        return TraceTerm(torch.linalg.svdvals(vision.root @ text.root.t()).sum(), "cross")
    if text.root is not None:
        return TraceTerm(_sum_of_root_eigenvalues(text.root @ vision.cov @ text.root.t()), "gram")
    if vision.root is not None:
        return TraceTerm(_sum_of_root_eigenvalues(vision.root @ text.cov @ vision.root.t()), "gram")
    lower, failed = torch.linalg.cholesky_ex(vision.cov)
    if not failed:
        return TraceTerm(_sum_of_root_eigenvalues(lower.t() @ text.cov @ lower), "cholesky")
    values, vectors = torch.linalg.eigh(vision.cov)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return TraceTerm(_sum_of_root_eigenvalues(root @ text.cov @ root), "eigh")


def frechet_distance(vision: Moments, text: Moments) -> Tensor:
    """‖μ_v − μ_t‖² + Tr Σ_v + Tr Σ_t − 2 Tr((Σ_v Σ_t)^½), scalar float64.

    Reference: Dowson and Landau 1982; in MIR: Huang et al. 2024, arXiv:2410.07167, eq. 3.
    """
    return mean_term(vision, text) + vision.cov.trace() + text.cov.trace() - 2 * trace_term(vision, text).value


def _sum_of_root_eigenvalues(symmetric: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.clamp_min(0).sqrt().sum()
