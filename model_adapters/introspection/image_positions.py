"""Which positions of the sequence hold image features, and the proof that the model puts its features there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.introspection.decoder import of_another_modality


def image_token_id(model: Any, processor: Any) -> int | None:
    """The id the model replaces by image features, or None where neither model nor processor names one."""
    for owner, name in (
        (model.config, "image_token_id"),
        (model.config, "image_token_index"),
        (processor, "image_token_id"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return value
    return None


def vision_mask(inputs: Mapping[str, Tensor], token_id: int | None) -> Tensor:
    """Image positions, bool (samples, tokens): where the ids are the image token's, else where the types say image.

    Separators around tiles are neither: the model fills them with ordinary embeddings.

    Raises:
        MirError: if the inputs offer neither way.
    """
    if token_id is not None:
        return inputs["input_ids"] == token_id
    if "mm_token_type_ids" in inputs:
        return inputs["mm_token_type_ids"] == 1
    raise MirError(
        "neither the model's configuration nor its processor names an image token (image_token_id), so the positions "
        "of the image cannot be known. Models that show images through cross-attention have none, and no MIR."
    )


def text_mask(vision: Tensor, attention_mask: Tensor) -> Tensor:
    """Every position after the last image position, padding excluded; bool (samples, tokens)."""
    images_still_to_come = vision.flip(1).cumsum(1).flip(1)
    return (images_still_to_come == 0) & attention_mask.bool()


@contextmanager
def checked_positions(model: nn.Module, vision: Tensor) -> Iterator[None]:
    """While open, a forward pass of ``model`` must put exactly one feature row at each position of ``vision``.

    Raises:
        MirError: inside the forward pass, when the number of rows or the model's own mask disagrees; after it, when it
            never asked for image features.
    """
    n_rows_expected = int(vision.sum())
    counted: list[int] = []

    def check_rows(features: Any) -> None:
        n_rows = feature_rows(features)
        if n_rows != n_rows_expected and isinstance(features, tuple):
            n_rows = feature_rows(features[0])  # transformers 4 returns intermediate results behind them
        counted.append(n_rows)
        if n_rows != n_rows_expected:
            raise MirError(
                f"the model made {n_rows} image feature rows for {n_rows_expected} image positions in the sequence. "
                "Model and processor do not belong together (patch size, image size or tokens per image differ)."
            )

    def check_mask(mask: Any) -> None:
        image_mask = mask[0] if isinstance(mask, tuple) else mask
        if image_mask is None:
            return
        if image_mask.dim() > vision.dim():  # repeated along the features' axis
            image_mask = image_mask[..., 0]
        if not torch.equal(image_mask, vision.to(image_mask.device)):
            raise MirError(
                f"the model puts image features at {int(image_mask.sum())} positions that are not the "
                f"{n_rows_expected} positions of its image token. This architecture needs an adapter of its own."
            )

    with (
        _observed(owner_of(model, "get_image_features"), "get_image_features", check_rows),
        _observed(owner_of(model, "get_placeholder_mask"), "get_placeholder_mask", check_mask),
    ):
        yield
    if not counted:
        raise MirError(
            f"{type(model).__name__} did not call its get_image_features, so its image features could not be counted "
            "against the image positions. This architecture needs an adapter of its own."
        )


def require_countable_features(model: nn.Module) -> None:
    """Refuse models whose image features cannot be counted. Raises MirError saying why."""
    if owner_of(model, "get_image_features") is not None:
        return
    name = type(model).__name__
    paths = [path for path, _ in model.named_modules()]
    if crossing := _cross_attention(model):
        raise MirError(
            f"{name} shows images to its language model through cross-attention ({crossing}), so no position of the "
            "sequence holds an image. MIR compares image positions with text positions; this model has no MIR."
        )
    if owner_of(model, "get_video_features") is not None:
        raise MirError(f"{name} takes videos, not images (it has get_video_features, but no get_image_features).")
    if not any(of_another_modality(path) for path in paths):
        raise MirError(f"{name} cannot be measured: it has no part that reads images.")
    raise MirError(
        f"{name} has no get_image_features, so its image features cannot be counted against the "
        "image positions. It cannot be measured without an adapter of its own."
    )


def feature_rows(features: Any) -> int:
    """Rows in what ``get_image_features`` returned: a tensor (..., d), a sequence of them, or an output around one.

    Raises:
        MirError: for an output that holds features under no known name.
    """
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    if isinstance(features, (list, tuple)):
        return sum(feature_rows(part) for part in features)
    for name in ("pooler_output", "last_hidden_state"):  # Llama 4 has its features in the latter
        if getattr(features, name, None) is not None:
            return feature_rows(getattr(features, name))
    added_to_layers = getattr(features, "deepstack_features", None)  # (layer, rows) pairs, each for all image positions
    if added_to_layers:
        return feature_rows(added_to_layers[0][1])
    raise MirError(
        f"get_image_features returned {type(features).__name__}, which holds neither pooler_output nor "
        "last_hidden_state, so image features cannot be counted. This architecture needs an adapter of its own."
    )


def _cross_attention(model: nn.Module) -> str | None:
    """Path of the first module of the language model that attends to something else than the sequence."""
    for path, module in model.named_modules():
        kind = f"{path.rpartition('.')[2]} {type(module).__name__}".lower().replace("_", "")
        if "cross" in kind and "att" in kind and not of_another_modality(path):
            return str(path)
    return None


def owner_of(model: nn.Module, method: str) -> nn.Module | None:
    """The innermost module that has the method: outer classes delegate to it."""
    owners = [module for module in model.modules() if callable(getattr(module, method, None))]
    return owners[-1] if owners else None


@contextmanager
def _observed(owner: nn.Module | None, method: str, check: Callable[[Any], None]) -> Iterator[None]:
    """Run ``check`` on every value that ``owner.method`` returns; the object's own state is restored on leaving."""
    if owner is None:
        yield
        return
    original = getattr(owner, method)
    shadowed = owner.__dict__.get(method)

    def observed(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        check(value)
        return value

    owner.__dict__[method] = observed
    try:
        yield
    finally:
        if shadowed is None:
            del owner.__dict__[method]
        else:
            owner.__dict__[method] = shadowed
