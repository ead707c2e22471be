"""A decoder-only toy adapter: no checkpoint, no vision tower, every number drawn from a seed."""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch, Decoder

N_BEFORE, N_VISION = 3, 9


class ToyAdapter:
    """Vision tokens follow the image bytes, text tokens the characters of the text (one token each)."""

    family = "toy"
    device = torch.device("cpu")

    def __init__(self, n_layers: int = 3, width: int = 16, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            vocab_size=300,
            max_position_embeddings=512,
        )
        self.model = LlamaModel(config).eval()
        self.decoder = Decoder(list(self.model.layers), self.model.norm)
        self.facts: dict[str, Any] = {
            "prompt_template": "toy",
            "checkpoint_fingerprint": f"toy-{n_layers}-{width}-{seed}",
        }

    def encode(self, samples: list[Sample]) -> Batch:
        lengths = [N_BEFORE + N_VISION + len(sample.text) for sample in samples]
        embeddings = torch.zeros(len(samples), max(lengths), self.model.config.hidden_size)
        mask = torch.zeros(len(samples), max(lengths), dtype=torch.long)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            assert isinstance(sample.image, bytes)
            generator = torch.Generator().manual_seed(zlib.crc32(sample.image))
            image = 3 * torch.randn(N_VISION, embeddings.shape[2], generator=generator)
            ids = torch.tensor([7] * N_BEFORE + [ord(c) % 300 for c in sample.text])
            text = self.model.embed_tokens(ids).detach()
            embeddings[row, :length] = torch.cat([text[:N_BEFORE], image, text[N_BEFORE:]])
            mask[row, :length] = 1
        positions = torch.arange(max(lengths))
        vision_mask = ((positions >= N_BEFORE) & (positions < N_BEFORE + N_VISION)).expand(len(samples), -1)
        text_mask = (positions >= N_BEFORE + N_VISION) & mask.bool()
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask}
        return Batch(inputs, vision_mask, text_mask, tuple(sample.sample_id for sample in samples))

    def forward(self, batch: Batch) -> torch.Tensor:
        states: torch.Tensor = self.model(**batch.inputs, use_cache=False).last_hidden_state
        return states

    def bound_to(self, batch: Batch) -> AbstractContextManager[None]:
        return nullcontext()


def toy_samples(n: int) -> list[Sample]:
    """Texts of different lengths, so that batches are padded."""
    return [Sample(f"toy-{i}", f"image {i}".encode(), "a few words of text " * (1 + i % 3) + str(i)) for i in range(n)]
