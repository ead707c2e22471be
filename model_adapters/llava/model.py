"""LLaVA as one module: vision tower, projector, base LLM, and the splice that puts vision tokens into the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.merging import Merge
from mir_plugin.model_adapters.llava.projectors import Projector
from mir_plugin.model_adapters.llava.views import Size
from mir_plugin.model_adapters.llava.vision_tower import ClipTower
from mir_plugin.model_adapters.moca.calibration import CarriesMoca
from mir_plugin.model_adapters.prompts.sequences import PaddedBatch

# Their language models multiplied whatever embeddings came in, also the projector's rows, when checkpoints were
# trained. Where transformers' embedding layer multiplies its own output instead, the rows are multiplied here.
_SCALE_EVERY_EMBEDDING = frozenset({"gemma", "gemma2"})


class LlavaModel(CarriesMoca):
    """Vision tower → projector → base LLM.

    ``base_llm`` is a causal language model of transformers; its inner model runs alone where no logits are needed.
    """

    def __init__(
        self, vision_tower: ClipTower, projector: Projector, base_llm: Any, merge: Merge | None = None
    ) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.projector = cast("nn.Module", projector)
        self.base_llm = base_llm
        self.merge = merge
        if merge is not None and merge.has_newline:
            self.image_newline = nn.Parameter(torch.empty(self.hidden_size))

    @property
    def n_vision_tokens(self) -> int:
        """Rows of one image seen in one view."""
        return cast("Projector", self.projector).n_vision_tokens(self.vision_tower.n_features)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the base LLM."""
        return list(self.base_llm.model.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the base LLM."""
        return int(self.base_llm.config.hidden_size)

    def n_rows(self, size: Size) -> int:
        """Rows that an image of this size, (width, height), takes in the sequence."""
        return self.n_vision_tokens if self.merge is None else self.merge.n_rows(size)

    def embed(self, batch: PaddedBatch, pixel_values: Tensor, sizes: Sequence[Size] = ()) -> Tensor:
        """Embeddings (samples, tokens, d) of expanded sequences, vision tokens in place.

        ``pixel_values`` (views, 3, height, width) are the images of all samples in sequence order, each with all its
        views; ``sizes`` are those of the images, where they count.

        Raises:
            MirError: as ``embed_features``.
        """
        if pixel_values.shape[0] == 0:
            return cast("Tensor", self.base_llm.model.embed_tokens(batch.token_ids))
        return self.embed_features(batch, self.vision_tower(pixel_values), sizes)

    def embed_features(self, batch: PaddedBatch, features: Tensor, sizes: Sequence[Size] = ()) -> Tensor:
        """The same from the vision tower's features (views, features, width), of one image at least.

        The projector's rows fill the vision tokens in sequence order, as many as a prompt that was cut has left.

        Raises:
            MirError: if an image has more or fewer projector rows than vision tokens.
        """
        embeddings = cast("Tensor", self.base_llm.model.embed_tokens(batch.token_ids))
        rows = self.image_rows(batch, features, sizes)
        expected = [n for of_prompt in batch.n_rows for n in of_prompt]
        if [len(one) for one in rows] != expected:
            raise MirError(
                f"the projector returned {sum(map(len, rows))} rows for {len(rows)} images, but the prompts hold "
                f"{sum(expected)} vision tokens. The checkpoint's projector or vision tower does not fit its config."
            )
        embeddings = embeddings.clone()
        embeddings[batch.vision_mask] = self._of_prompts(batch, rows).to(embeddings.dtype)
        return embeddings

    def image_rows(self, batch: PaddedBatch, features: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
        """Rows (n, d) of each image, as the language model reads them."""
        rows: Tensor = self.projector(features, batch.prompt_ids, batch.prompt_mask)
        if self.base_llm.config.model_type in _SCALE_EVERY_EMBEDDING:
            rows = rows * getattr(self.base_llm.model.embed_tokens, "embed_scale", rows.new_ones(())).to(rows.dtype)
        if self.merge is None:
            return list(rows)
        views = [1 if self.merge.views is None else self.merge.views.n_views(size) for size in sizes]
        newline = self.image_newline if self.merge.has_newline else None
        return [self.merge(of_image, size, newline) for of_image, size in zip(rows.split(views), sizes, strict=True)]

    def _of_prompts(self, batch: PaddedBatch, rows: Sequence[Tensor]) -> Tensor:
        """All prompts' rows in sequence; what a cut took from a prompt is left out."""
        kept, start = [], 0
        for n_rows, n_places in zip(batch.n_rows, batch.vision_mask.sum(dim=1).tolist(), strict=True):
            if n_rows:
                kept.append(torch.cat(list(rows[start : start + len(n_rows)]))[:n_places])
            start += len(n_rows)
        return torch.cat(kept)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states after the final norm."""
        logits = cast("Tensor", self.base_llm.lm_head(hidden_states))
        cap = getattr(self.base_llm.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def prefill(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states (samples, tokens, d), after the final norm; no cache, no logits."""
        unpadded = bool(attention_mask.all())  # then attention needs no mask beyond the causal one, and runs faster
        outputs = self.base_llm.model(
            inputs_embeds=embeddings, attention_mask=None if unpadded else attention_mask, use_cache=False
        )
        return cast("Tensor", outputs.last_hidden_state)
