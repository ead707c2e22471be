"""The Q-Former projector: learned queries read the image through cross-attention, and the prompt beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import Weight

_HEAD_WIDTH = 64  # BERT's, in every published size; the number of heads is not stored with the weights


class QformerProjector(nn.Module):
    """A BLIP-2 style Q-Former of BERT layers, then one linear layer to the language model's width.

    The queries' rows become the vision tokens. Built from transformers' InstructBLIP Q-Former, which is the same
    network under other names.
    """

    def __init__(self, config: InstructBlipQFormerConfig, n_queries: int, d: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, n_queries, config.hidden_size))
        self.bert = InstructBlipQFormerModel(config)
        self.mm_mlp = nn.Linear(config.hidden_size, d)

    @classmethod
    def from_shapes(cls, weights: Mapping[str, Weight]) -> QformerProjector:
        """The empty projector whose parameters have the shapes of these weights.

        Raises:
            MirError: if weights that show its sizes are missing, or its width is not a multiple of BERT's head width.
        """
        _, n_queries, width = _shape(weights, "projector.query_tokens")
        n_words, _ = _shape(weights, "projector.bert.embeddings.word_embeddings.weight")
        n_positions, _ = _shape(weights, "projector.bert.embeddings.position_embeddings.weight")
        intermediate, _ = _shape(weights, "projector.bert.encoder.layer.0.intermediate_query.dense.weight")
        _, vision_width = _shape(weights, "projector.bert.encoder.layer.0.crossattention.attention.key.weight")
        d, _ = _shape(weights, "projector.mm_mlp.weight")
        layers = {int(name.split(".")[4]) for name in weights if name.startswith("projector.bert.encoder.layer.")}
        crossed = sorted(
            k for k in layers if f"projector.bert.encoder.layer.{k}.crossattention.attention.key.weight" in weights
        )
        if width % _HEAD_WIDTH:
            raise MirError(f"the width of the Q-Former is {width}, not a multiple of BERT's head width {_HEAD_WIDTH}.")
        config = InstructBlipQFormerConfig(
            vocab_size=n_words,
            hidden_size=width,
            num_hidden_layers=len(layers),
            num_attention_heads=width // _HEAD_WIDTH,
            intermediate_size=intermediate,
            max_position_embeddings=n_positions,
            cross_attention_frequency=crossed[1] - crossed[0] if len(crossed) > 1 else max(len(layers), 1),
            encoder_hidden_size=vision_width,
        )
        return cls(config, n_queries, d)

    def n_vision_tokens(self, n_features: int) -> int:
        """One row per query, however many features the image has."""
        return self.query_tokens.shape[1]

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Vision tokens (images, queries, d) from features (images, features, width) and the prompt of each image.

        Raises:
            MirError: if a prompt is longer than the Q-Former's positions.
        """
        n_positions = self.bert.config.max_position_embeddings
        if text_ids.shape[1] > n_positions:
            raise MirError(
                f"a prompt has {text_ids.shape[1]} tokens, more than the Q-Former's {n_positions} positions. "
                f"Shorten it."
            )
        n_images, n_queries = features.shape[0], self.query_tokens.shape[1]
        seen = torch.cat([text_mask.new_ones(n_images, n_queries), text_mask], dim=1)
        outputs = self.bert(
            input_ids=text_ids,
            attention_mask=seen,
            query_embeds=self.query_tokens.expand(n_images, -1, -1),
            encoder_hidden_states=features,
        )
        return cast("Tensor", self.mm_mlp(outputs.last_hidden_state[:, :n_queries]))


def _shape(weights: Mapping[str, Weight], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise MirError(f"the checkpoint's Q-Former has no {name.removeprefix('projector.')!r}. It is incomplete.")
    return weights[name].shape
