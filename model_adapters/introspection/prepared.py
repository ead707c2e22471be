"""What a sample became before it reached the model: digests of token ids and of pixels, as adapters hand them on."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mir_plugin.files.fingerprint import digest
from mir_plugin.types import SampleInputs

# Of the text's beginning and of its end, letters and digits that its tokens must give back.
_N_COMPARED = 12
# What the processor says of the tokens; everything else it makes comes from the image.
_OF_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids", "labels"})
_OF_QUESTION = ("qformer_input_ids", "qformer_attention_mask")


def content(tensor: Tensor) -> memoryview:
    """A tensor's bytes, in host memory."""
    return tensor.detach().flatten().contiguous().cpu().view(torch.uint8).numpy().data


class PreparedImage(NamedTuple):
    """Digest of everything an image became, and the shape of its pixels for people."""

    pixels: str
    shape: str


def prepared_image(tensors: Sequence[Tensor]) -> PreparedImage:
    """The digest of everything that one sample's image became; the pixels come first."""
    parts: list[bytes | memoryview] = []
    for tensor in tensors:
        parts += [f"{tensor.dtype} {tuple(tensor.shape)}".encode(), content(tensor)]
    return PreparedImage(digest(parts), "x".join(map(str, tensors[0].shape)) if tensors else "")


def prepared_sample(token_ids: Tensor, image: PreparedImage, *, cut: bool = False) -> SampleInputs:
    """The digests of one sample.

    Args:
        token_ids: (tokens,), without padding.
        cut: whether its text was cut off.
    """
    return SampleInputs(digest([content(token_ids.long())]), image.pixels, image.shape, cut)


def prepared_samples(
    encoded: Mapping[str, Any], vision_mask: Tensor, *, cut: Sequence[bool]
) -> tuple[SampleInputs, ...]:
    """The digests of a processor's batch, sample by sample and without padding, so that batches make no difference.

    Args:
        encoded: what the processor returned.
        vision_mask: (samples, tokens), by whose sums tensors are divided that hold the tiles of all images in a row.
        cut: whether a sample's text was cut off.
    """
    ids, attended = encoded["input_ids"], encoded["attention_mask"].bool()
    shares = vision_mask.sum(dim=1).tolist()
    names = sorted(encoded.keys() - {*_OF_TOKENS, *_OF_QUESTION}, key=lambda name: (name != "pixel_values", name))
    of_images = [encoded[name] for name in names]
    return tuple(
        prepared_sample(
            torch.cat([ids[row][attended[row]], *_question_ids(encoded, row)]),
            prepared_image([part for value in of_images for part in _parts_of(value, row, shares)]),
            cut=cut[row],
        )
        for row in range(len(ids))
    )


def is_cut(text: str, tokens_as_text: str) -> bool:
    """Whether the beginning or the end of a text is missing in what its tokens say, and the other is there.

    Letters and digits count. Where both are missing, the tokenizer rewrites texts, and nothing is known.

    >>> is_cut("A dog runs over the green field.", "USER: ASSISTANT: A dog runs over the gr")
    True
    """
    wanted, given = _plain(text), _plain(tokens_as_text)
    begins, ends = wanted[:_N_COMPARED] in given, wanted[-_N_COMPARED:] in given
    return begins != ends


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _question_ids(encoded: Mapping[str, Any], row: int) -> list[Tensor]:
    """A Q-Former's own tokens of the question, behind the others."""
    ids, mask = (encoded.get(name) for name in _OF_QUESTION)
    return [] if ids is None or mask is None else [ids[row][mask[row].bool()]]


def _parts_of(value: Any, row: int, shares: Sequence[int]) -> list[Tensor]:
    if isinstance(value, list):  # ragged: one entry for each image
        parts = value if len(shares) == 1 else value[row : row + 1]
        return [part for part in map(_as_tensor, parts) if part is not None]
    tensor = _as_tensor(value)
    if tensor is None:
        return []
    if len(shares) == 1 or tensor.dim() == 0:
        return [_without_padding(tensor)]
    n_rows, n_tokens = len(tensor), sum(shares)
    if n_rows == len(shares):
        return [_without_padding(tensor[row : row + 1])]
    start, length = (n_rows * share // n_tokens for share in (sum(shares[:row]), shares[row]))
    return [tensor[start : start + length]]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        value = torch.stack(list(value)) if all(one.shape == value[0].shape for one in value) else value[0]
    return value if isinstance(value, Tensor) else None


def _without_padding(tensor: Tensor) -> Tensor:
    """Without the tiles of zeros that fill an image, or its mask, up to the number that the batch's largest one has."""
    while tensor.dim() > 3 and tensor.shape[1] > 1 and not tensor[:, -1].any():
        tensor = tensor[:, :-1]
    return tensor
