"""Token sequences with their image placeholders expanded, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mir_plugin.model_adapters.prompts.conversation import IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class ExpandedPrompt:
    """One prompt as the decoder sees it.

    Attributes:
        token_ids: (tokens,); 0 on vision tokens, which are filled with projector rows.
        vision_mask: bool (tokens,), true on vision tokens.
        text_ids: the prompt's ids without image placeholders, for projectors that read the prompt.
        n_rows: vision tokens of each image, before any cut.
    """

    token_ids: Tensor
    vision_mask: Tensor
    text_ids: Tensor
    n_rows: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Length of the sequence."""
        return self.token_ids.shape[0]

    def cut(self, n_tokens: int | None) -> ExpandedPrompt:
        """The first ``n_tokens`` positions; the ids that a projector reads stay whole, as in the original."""
        return ExpandedPrompt(self.token_ids[:n_tokens], self.vision_mask[:n_tokens], self.text_ids, self.n_rows)

    def text_mask(self) -> Tensor:
        """Bool (tokens,): every position after the last vision token. Needs at least one."""
        (places,) = self.vision_mask.nonzero(as_tuple=True)
        after = torch.zeros_like(self.vision_mask)
        after[int(places[-1]) + 1 :] = True
        return after


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts of different lengths as rectangles (samples, tokens).

    Attributes:
        n_rows: of each prompt, the vision tokens of each of its images before any cut.
    """

    token_ids: Tensor
    vision_mask: Tensor
    attention_mask: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    n_rows: tuple[tuple[int, ...], ...]


def expand(ids: Sequence[int], n_vision_tokens: int | Sequence[int]) -> ExpandedPrompt:
    """Replace every image placeholder by its vision tokens: as many for each, or one number per image."""
    n_images = sum(token == IMAGE_PLACEHOLDER for token in ids)
    n_rows = (n_vision_tokens,) * n_images if isinstance(n_vision_tokens, int) else tuple(n_vision_tokens)
    of_images = iter(n_rows)
    token_ids: list[int] = []
    is_vision: list[bool] = []
    for token in ids:
        image = token == IMAGE_PLACEHOLDER
        n_tokens = next(of_images) if image else 1
        token_ids += [0] * n_tokens if image else [token]
        is_vision += [image] * n_tokens
    return ExpandedPrompt(
        token_ids=torch.tensor(token_ids),
        vision_mask=torch.tensor(is_vision),
        text_ids=torch.tensor([token for token in ids if token != IMAGE_PLACEHOLDER]),
        n_rows=n_rows,
    )


def padded_batch(prompts: Sequence[ExpandedPrompt], device: torch.device, *, left: bool = False) -> PaddedBatch:
    """Pad to the longest prompt, on the right, or on the left for generation."""
    per_image = [prompt.text_ids for prompt in prompts for _ in prompt.n_rows]
    return PaddedBatch(
        token_ids=padded([prompt.token_ids for prompt in prompts], left=left).to(device),
        vision_mask=padded([prompt.vision_mask for prompt in prompts], left=left).to(device),
        attention_mask=padded([torch.ones(prompt.n_tokens, dtype=torch.bool) for prompt in prompts], left=left).to(
            device
        ),
        prompt_ids=padded(per_image).to(device),
        prompt_mask=padded([torch.ones_like(ids, dtype=torch.bool) for ids in per_image]).to(device),
        n_rows=tuple(prompt.n_rows for prompt in prompts),
    )


def padded(rows: Sequence[Tensor], *, left: bool = False) -> Tensor:
    """Rows (length,) of one dtype as (rows, longest), filled with zero or false on one side; (0, 0) for no rows."""
    if not rows:
        return torch.zeros(0, 0, dtype=torch.long)
    # Turned around for the left side: pad_sequence has padding_side= from torch 2.5 on.
    if left:
        return pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    return pad_sequence(list(rows), batch_first=True)
