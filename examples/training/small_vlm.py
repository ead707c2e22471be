"""A small vision-language model of its own class, with nanoVLM's parts and call: patches, projector, decoder blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torchvision.transforms.functional import to_tensor

from mir_plugin import Sample

WIDTH, N_BLOCKS, N_HEADS, PATCH, SIDE = 32, 3, 4, 16, 64
N_IMAGE_TOKENS = (SIDE // PATCH) ** 2
IMAGE_TOKEN = 256  # text is read as bytes


class Block(nn.Module):
    """One decoder layer: causal attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(samples, tokens, d) → the same."""
        heads = self.qkv(self.norm1(x)).unflatten(2, (3, N_HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """The language model."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(IMAGE_TOKEN + 1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(N_BLOCKS))
        self.norm = nn.RMSNorm(WIDTH)


class SmallVLM(nn.Module):
    """Puts image features where the image token stands."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_encoder = nn.Conv2d(3, 24, kernel_size=PATCH, stride=PATCH)
        self.projector = nn.Linear(24, WIDTH)
        self.decoder = Decoder()
        self.head = nn.Linear(WIDTH, IMAGE_TOKEN + 1)

    def forward(self, input_ids: Tensor, image: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits, and the loss where there are targets; −100 among them counts for nothing."""
        x = self.decoder.token_embedding(input_ids)
        features = self.projector(self.vision_encoder(image).flatten(2).transpose(1, 2))
        x = x.masked_scatter((input_ids == IMAGE_TOKEN)[..., None], features.to(x.dtype))
        for block in self.decoder.blocks:
            x = block(x)
        logits = self.head(self.decoder.norm(x))
        if targets is None:
            return logits, None
        return logits, cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def encode(samples: Sequence[Sample]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What MIR needs: the forward pass's arguments, and which tokens of the decoder's sequence are image and text."""
    [sample] = samples  # one at a time, as OwnModel.max_batch says
    ids = torch.tensor([[IMAGE_TOKEN] * N_IMAGE_TOKENS + list(sample.text.encode())])
    image = to_tensor(sample.open_image().convert("RGB").resize((SIDE, SIDE)))[None]
    vision = ids == IMAGE_TOKEN
    return {"input_ids": ids, "image": image}, vision, ~vision
