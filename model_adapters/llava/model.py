"""LLaVA as one module: vision tower, projector, base LLM, and the splice that puts vision tokens into the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.llava.projectors import Projector
from mir_plugin.model_adapters.llava.vision_tower import ClipTower
from mir_plugin.model_adapters.moca.calibration import CarriesMoca
from mir_plugin.model_adapters.prompts.sequences import PaddedBatch


class LlavaModel(CarriesMoca):
    """Vision tower → projector → base LLM.

    ``base_llm`` is a causal language model of transformers; its inner model runs alone where no logits are needed.
    """

    def __init__(self, vision_tower: ClipTower, projector: Projector, base_llm: Any) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.projector = cast("nn.Module", projector)
        self.base_llm = base_llm

    @property
    def n_vision_tokens(self) -> int:
        """Rows one image takes in the sequence."""
        return cast("Projector", self.projector).n_vision_tokens(self.vision_tower.n_features)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the base LLM."""
        return list(self.base_llm.model.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the base LLM."""
        return int(self.base_llm.config.hidden_size)

    def embed(self, batch: PaddedBatch, pixel_values: Tensor) -> Tensor:
        """Embeddings (samples, tokens, d) of expanded sequences, vision tokens in place.

        ``pixel_values`` (images, 3, height, width) are the images of all samples in sequence order.

        Raises:
            MirError: as ``embed_features``.
        """
        if pixel_values.shape[0] == 0:
            return cast("Tensor", self.base_llm.model.embed_tokens(batch.token_ids))
        return self.embed_features(batch, self.vision_tower(pixel_values))

    def embed_features(self, batch: PaddedBatch, features: Tensor) -> Tensor:
        """The same from the vision tower's features (images, features, width), of one image at least.

        The projector's rows fill the vision tokens in sequence order.

        Raises:
            MirError: if there are more or fewer projector rows than vision tokens.
        """
        embeddings = cast("Tensor", self.base_llm.model.embed_tokens(batch.token_ids))
        rows = self.projector(features, batch.prompt_ids, batch.prompt_mask).flatten(0, 1)
        n_places = int(batch.vision_mask.sum())
        if rows.shape[0] != n_places:
            raise MirError(
                f"the projector returned {rows.shape[0]} rows for {features.shape[0]} images, but the prompts hold "
                f"{n_places} vision tokens. The checkpoint's projector or vision tower does not fit its config."
            )
        embeddings = embeddings.clone()
        embeddings[batch.vision_mask] = rows.to(embeddings.dtype)
        return embeddings

    def prefill(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states (samples, tokens, d), after the final norm; no cache, no logits."""
        unpadded = bool(attention_mask.all())  # then attention needs no mask beyond the causal one, and runs faster
        outputs = self.base_llm.model(
            inputs_embeds=embeddings, attention_mask=None if unpadded else attention_mask, use_cache=False
        )
        return cast("Tensor", outputs.last_hidden_state)
