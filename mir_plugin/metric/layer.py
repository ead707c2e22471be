"""The metric as the paper states it: from the tokens of a layer to its distance, and from all layers to MIR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.metric.frechet import frechet_distance
from mir_plugin.metric.moments import moments
from mir_plugin.metric.normalize import remove_outliers, replace_outliers, text_centric_scale


@torch.no_grad()
def layer_distance(
    vision: Tensor,
    text: Tensor,
    *,
    outliers: Literal["replace", "remove", "none"] = "replace",
    n_sigma: float = 3.0,
    normalize: bool = True,
) -> Tensor:
    """Distance between the vision and the text tokens of one layer: normalize, handle outliers, compare two Gaussians.

    Args:
        vision: hidden states of one layer, (tokens, d), any float dtype; all samples together.
        text: the same of the text tokens.
        outliers: what happens to tokens whose norm is far from the median norm of their modality. "replace": the token
            becomes the coordinate-wise median (the released script); "remove": it is dropped (the paper's text);
            "none".
        n_sigma: how far, in standard deviations of the norm.
        normalize: text-centric normalization on or off.
    Returns:
        Scalar, float64, at least 0, without gradient; ``layer_loss`` has one.
    Raises:
        MirError: for tensors of another shape, NaN or infinity, fewer than two tokens, or text of norm zero.

    >>> vision, text = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> round(layer_distance(vision, text).item(), 12)
    0.0
    """
    _require_tokens(vision, text)
    scale = text_centric_scale(text) if normalize else 1.0
    prepared = [_handled(tokens.double() * scale, outliers, n_sigma) for tokens in (vision, text)]
    return frechet_distance(*map(moments, prepared))


def modality_integration_rate(
    vision: Sequence[Tensor],
    text: Sequence[Tensor],
    *,
    outliers: Literal["replace", "remove", "none"] = "replace",
    n_sigma: float = 3.0,
    normalize: bool = True,
) -> Tensor:
    """MIR of hidden states: log10 of the sum of the layers' distances; dimensionless, lower is better.

    The defaults are the paper's protocol. In the paper the layers are 1 … L, without the embeddings, and the last is
    taken after the final norm; text tokens are all tokens after the image.

    Args:
        vision: for each layer the hidden states of its vision tokens, (tokens, d), all samples together.
        text: the same of the text tokens.
        outliers: as for ``layer_distance``.
        n_sigma: as for ``layer_distance``.
        normalize: as for ``layer_distance``.
    Returns:
        Scalar, float64, without gradient; ``mir_loss`` has one.
    Raises:
        MirError: as ``layer_distance``, naming the layer; or if the numbers of layers differ.
    """
    if len(vision) != len(text) or len(vision) == 0:
        raise MirError(f"{len(vision)} layers of vision and {len(text)} of text tokens; expected the same number.")
    distances = []
    for layer, pair in enumerate(zip(vision, text, strict=True), start=1):
        try:
            distances.append(layer_distance(*pair, outliers=outliers, n_sigma=n_sigma, normalize=normalize))
        except MirError as error:
            raise MirError(f"layer {layer}: {error}") from error
    return distances[0].new_tensor(mir([distance.item() for distance in distances]))


def mir(distances: Sequence[float]) -> float:
    """log10 of the sum of the layer distances; dimensionless, lower is better.

    Raises:
        MirError: if the sum is not positive, so that it has no logarithm.

    >>> mir([40.0, 60.0])
    2.0
    """
    total = math.fsum(distances)
    if not total > 0:
        raise MirError(
            f"the layer distances sum to {total:g}, which has no logarithm: vision and text tokens have the same "
            "mean and covariance in every layer. Check that the samples hold images and texts."
        )
    return math.log10(total)


def _handled(tokens: Tensor, outliers: str, n_sigma: float) -> Tensor:
    if outliers == "replace":
        return replace_outliers(tokens, n_sigma)
    if outliers == "remove":
        return remove_outliers(tokens, n_sigma)
    if outliers == "none":
        return tokens
    raise MirError(f"outliers is {outliers!r}; expected 'replace', 'remove' or 'none'.")


def _require_tokens(vision: Tensor, text: Tensor) -> None:
    """Raise MirError unless both are finite (tokens, d) of one width on one device."""
    for name, tokens in (("vision", vision), ("text", text)):
        if not isinstance(tokens, Tensor):
            raise MirError(f"expected {name} tokens as a torch.Tensor, got {type(tokens).__name__}.")
        if tokens.dim() != 2:
            raise MirError(
                f"{name} has shape {tuple(tokens.shape)}, expected (tokens, d). A boolean mask of shape (samples, "
                "tokens) selects a modality's tokens: hidden_states[mask]."
            )
        if not tokens.is_floating_point():
            raise MirError(f"{name} has dtype {tokens.dtype}, expected a floating point dtype.")
    if vision.shape[1] != text.shape[1]:
        raise MirError(f"vision tokens have width {vision.shape[1]}, text tokens {text.shape[1]}; expected the same.")
    if vision.device != text.device:
        raise MirError(f"vision is on {vision.device}, text on {text.device}; expected the same device.")
    for name, tokens in (("vision", vision), ("text", text)):
        if n_broken := int((~tokens.isfinite()).any(dim=1).sum()):
            raise MirError(f"{n_broken} of {len(tokens)} {name} tokens are NaN or infinite.")
