"""What a measurement will need, before it begins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mir_plugin.engine.replay import ReplayCheck
from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Decoder, ModelAdapter

# Rows per step wherever features are converted to float64: 4096 rows of a 4096-wide model are 134 MB.
CHUNK_ROWS = 4096
# Covariances, their scaled copies, and the work space of an eigenvalue solver: matrices of (d, d) at one time.
N_MATRICES = 12


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes; all but ``spool`` on the device, besides vision tower, projector and embeddings.

    Attributes:
        decoder: weights of the decoder layers that are resident at one time.
        features: one layer's tokens of this process's samples; of more layers where statistics run beside the forward
            passes, or several processes deal them out.
        statistics: float64 copies of some thousand rows, covariances and their decomposition.
        spool: on disk, of a depth-first run; else 0.
    """

    decoder: int
    features: int
    statistics: int
    spool: int

    def __str__(self) -> str:
        parts = {"decoder weights": self.decoder, "features": self.features, "statistics": self.statistics}
        shown = ", ".join(f"{name} {n_bytes / 1e9:.2f} GB" for name, n_bytes in parts.items())
        return shown + (f"; on disk {self.spool / 1e9:.2f} GB" if self.spool else "")


def estimate_memory(
    adapter: ModelAdapter, samples: Sequence[Sample], check: ReplayCheck, n_held: int = 1
) -> MemoryEstimate:
    """Estimate from the first sample: as many vision tokens in each, text tokens in proportion to the texts' length.

    Args:
        n_held: layers whose features are kept at one time.
    """
    first = adapter.encode(samples[:1])
    n_vision, n_text = int(first.vision_mask.sum()), int(first.text_mask.sum())
    n_tokens = len(samples) * n_vision + n_text * sum(len(one.text) for one in samples) // len(samples[0].text)
    d, dtype = hidden_states_of_decoder(adapter.decoder)
    features = n_tokens * d * dtype.itemsize
    return MemoryEstimate(
        decoder=_decoder_bytes(adapter.decoder),
        features=n_held * features,
        statistics=8 * d * (3 * min(CHUNK_ROWS, n_tokens) + N_MATRICES * d),
        spool=len(adapter.decoder.layers) * features if check.path == "depth-first" else 0,
    )


def hidden_states_of_decoder(decoder: Decoder) -> tuple[int, torch.dtype]:
    """Width and dtype, from a norm's weight, or what a layer's first projection takes where norms have none."""
    modules = (decoder.final_norm, *decoder.layers)
    norms = [p for module in modules for p in module.parameters() if p.dim() == 1]
    projections = [one.weight for layer in decoder.layers for one in layer.modules() if isinstance(one, nn.Linear)]
    if not norms and not projections:
        raise MirError(
            f"{type(decoder.layers[0]).__name__} has neither norms with weights nor linear projections, so the width "
            "of its hidden states is unknown. This architecture needs an adapter of its own."
        )
    weight = (norms or projections)[0]
    return weight.shape[-1], weight.dtype


def require_disk_space(estimate: MemoryEstimate) -> None:
    """Raise MirError where the folder for temporary files has no room for a depth-first run's features."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if estimate.spool > free:
        raise MirError(
            f"this model's layers cannot be replayed one by one, so features go to disk: about "
            f"{estimate.spool / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free. Set TMPDIR to a larger disk or "
            f"measure fewer samples."
        )


def _decoder_bytes(decoder: Decoder) -> int:
    if decoder.streamed is not None:
        return decoder.streamed.layer_bytes * (2 if decoder.streamed.room_for_two else 1)
    return sum(p.numel() * p.element_size() for layer in decoder.layers for p in layer.parameters())
