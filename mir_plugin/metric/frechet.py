"""Squared Fréchet distance between two Gaussians, and its exact trace term."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mir_plugin.metric.moments import Moments
from mir_plugin.metric.polar import trace_term_by_polar, transport_by_polar

Way = Literal["eigenvalues", "polar", "eigenvalues on the CPU"]
# How the covariances are decomposed, by the device they are on, and why. benchmarks/RESULTS.md (d) has the times for
# more widths, and says what has not been measured.
WAYS: dict[str, Way] = {
    # d = 1024, one thread: 0.23 s, and 1.39 s by the polar decomposition, which has more operations.
    "cpu": "eigenvalues",
    # Only matrix products, QR and Cholesky, which suit the device better than eigenvalues do. Not measured yet.
    "accelerator": "polar",
    # Consumer GPUs run float64 at 1/32 to 1/64 of the rate of float32, about that of a CPU. Not measured yet.
    "accelerator with slow float64": "eigenvalues on the CPU",
}
# CUDA compute capabilities with float64 at half the rate of float32: P100, V100, A100, H100 and H200, B200.
FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
# Directions whose s (below) is under this share of the largest are rounding, and no map is defined on them.
SMALLEST_SCALE = 1e-6
# A distance under this share of its terms is what their rounding leaves, of either sign: that of a set to itself.
ROUNDING = 1e-12


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
    """Tr((Σ_v Σ_t)^½), by the way that ``WAYS`` gives for the device."""
    way = way_on(vision.cov.device)
    if way == "polar":
        return TraceTerm(trace_term_by_polar(vision, text), way)
    if way == "eigenvalues on the CPU":
        vision, text = vision.to("cpu"), text.to("cpu")
    return trace_term_by_eigenvalues(vision, text)


def trace_term_by_eigenvalues(vision: Moments, text: Moments) -> TraceTerm:
    """Tr((Σ_v Σ_t)^½) by the cheapest exact route; symmetric throughout, so there is no complex part to discard.

    With roots R (RᵀR = Σ) the term is the sum of the singular values of R_v R_tᵀ. Routes, by what is available:

    * "cross": a rank below the number of dimensions in both modalities, as with few tokens; singular values of the
      (r_v, r_t) cross matrix.
    * "gram": in one of them; eigenvalues of R Σ Rᵀ, (r, r), R being that modality's root.
    * "cholesky": in neither; eigenvalues of Lᵀ Σ_t L with L Lᵀ = Σ_v, (d, d).
    * "eigh": the same with a symmetric square root, where Cholesky finds Σ_v singular.

    Negative eigenvalues are rounding (the matrices are positive semi-definite) and count as 0.
    """
    if vision.root is not None and text.root is not None:
        return TraceTerm(torch.linalg.svdvals(vision.root @ text.root.t()).sum(), "cross")
    for root, other in ((text.root, vision), (vision.root, text)):
        if root is not None:
            return TraceTerm(_sum_of_root_eigenvalues(root @ other.cov @ root.t()), "gram")
    lower, failed = torch.linalg.cholesky_ex(vision.cov)
    if not failed:
        return TraceTerm(_sum_of_root_eigenvalues(lower.t() @ text.cov @ lower), "cholesky")
    values, vectors = torch.linalg.eigh(vision.cov)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return TraceTerm(_sum_of_root_eigenvalues(root @ text.cov @ root), "eigh")


def way_on(device: torch.device) -> Way:
    """How covariances on a device are decomposed."""
    if device.type == "cpu":
        return WAYS["cpu"]
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) in FAST_FLOAT64
    return WAYS["accelerator" if fast else "accelerator with slow float64"]


class Transport(NamedTuple):
    """The map T that carries the vision tokens' Gaussian onto the text tokens', as factors, and the trace term.

    ``to_text`` (r, d) with to_textᵀ to_text = T and ``to_vision`` (r, d) with to_visionᵀ to_vision = T⁻¹, both on the
    r directions that the two covariances share; r = d when neither is singular.
    """

    to_text: Tensor
    to_vision: Tensor
    trace_term: TraceTerm


def transport(vision: Moments, text: Moments) -> Transport:
    """The optimal transport between two centred Gaussians, by the way that ``WAYS`` gives for the device."""
    device = vision.cov.device
    way = way_on(device)
    if way == "polar":
        to_text, to_vision, term = transport_by_polar(vision, text)
        return Transport(to_text, to_vision, TraceTerm(term, way))
    if way == "eigenvalues":
        return transport_by_eigenvectors(vision, text)
    maps = transport_by_eigenvectors(vision.to("cpu"), text.to("cpu"))
    return Transport(maps.to_text.to(device), maps.to_vision.to(device), maps.trace_term)


def transport_by_eigenvectors(vision: Moments, text: Moments) -> Transport:
    """With RᵀR = Σ_t and R Σ_v Rᵀ = V s² Vᵀ the map is T = Rᵀ V s⁻¹ Vᵀ R.

    The trace term is the sum of the s, so one decomposition serves both. Routes are those of
    ``trace_term_by_eigenvalues``.
    """
    if _root_rows(vision) < _root_rows(text):
        back = transport_by_eigenvectors(text, vision)
        return Transport(back.to_vision, back.to_text, back.trace_term)
    root, route = _root(text)
    if vision.root is not None:
        vectors, scales, _ = torch.linalg.svd(root @ vision.root.t(), full_matrices=False)
        route = "cross"
    else:
        values, vectors = torch.linalg.eigh(root @ vision.cov @ root.t())
        scales = values.clamp_min(0).sqrt()
    kept = scales > SMALLEST_SCALE * (scales.max() if len(scales) else 0.0)  # equal tokens have no direction at all
    roots = scales[kept].sqrt()[:, None]
    to_text = (vectors[:, kept].t() @ root) / roots
    return Transport(to_text, to_text @ vision.cov / roots.square(), TraceTerm(scales.sum(), route))


def _root_rows(one: Moments) -> int:
    return len(one.cov) if one.root is None else len(one.root)


def _root(one: Moments) -> tuple[Tensor, str]:
    """A matrix R, (tokens or d, d), with RᵀR = Σ, and how it was found; the covariance may be singular."""
    if one.root is not None:
        return one.root, "gram"
    lower, failed = torch.linalg.cholesky_ex(one.cov)
    if not failed:
        return lower.t(), "cholesky"
    values, vectors = torch.linalg.eigh(one.cov)
    return (vectors * values.clamp_min(0).sqrt()).t(), "eigh"


def frechet_distance(vision: Moments, text: Moments) -> Tensor:
    """‖μ_v − μ_t‖² + Tr Σ_v + Tr Σ_t − 2 Tr((Σ_v Σ_t)^½), scalar float64, at least 0.

    Reference: Dowson and Landau 1982; in MIR: Huang et al. 2024, arXiv:2410.07167, eq. 3.
    """
    terms = mean_term(vision, text) + vision.cov.trace() + text.cov.trace()
    distance = terms - 2 * trace_term(vision, text).value
    return distance.masked_fill(distance <= ROUNDING * terms, 0.0)


def _sum_of_root_eigenvalues(symmetric: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.clamp_min(0).sqrt().sum()
