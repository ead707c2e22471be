"""``python benchmarks/layer_profile.py``: where the time of one decoder layer goes on a CPU, part by part.

Run by path, it takes the mir_plugin that Python finds: ``PYTHONPATH=OTHER_TREE`` profiles another version of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

import mir_plugin
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.measurement.pooled_tokens import pooled_median, pooled_moments, pooled_norms
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures

N_VISION, N_TEXT = 576, 1074  # tokens of a sample with a text of 781 words


def main() -> None:
    """Parse the options, profile, print the table."""
    parser = argparse.ArgumentParser(prog="layer_profile.py", description=__doc__)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{Path(mir_plugin.__file__).parent}: {options.samples} samples, d = {options.d}, {options.threads} threads\n"
    )
    print("| part | seconds | processor seconds |\n|---|---|---|")
    with torch.no_grad():
        for name, work in _parts(options.samples, options.d).items():
            seconds, spent = min(_timed(work) for _ in range(options.repeats))
            print(f"| {name} | {seconds:.2f} | {spent:.2f} |", flush=True)


def _parts(n_samples: int, d: int) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)
    vision, text = (
        torch.randn(n_samples * n, d, generator=generator) * torch.logspace(0, -2, d) for n in (N_VISION, N_TEXT)
    )
    vision[3] *= 40  # outliers, so that medians are taken
    text[5] *= 40
    features = TokenFeatures(1, vision, text, (N_VISION,) * n_samples, (N_TEXT,) * n_samples)
    config = LlamaConfig(
        hidden_size=d, intermediate_size=11 * d // 4, num_hidden_layers=1, num_attention_heads=d // 64, vocab_size=8
    )
    model = LlamaModel(config).eval()
    state = torch.randn(1, N_VISION + N_TEXT, d, generator=generator)
    layer = PooledLayer.of(features, MirConfig())
    maps = layer.transport()

    def forward() -> None:
        for _ in range(n_samples):
            model(inputs_embeds=state, use_cache=False)

    def statistics() -> None:
        one = PooledLayer.of(features, MirConfig())
        of_it = one.transport()
        one.influences(of_it, one.layer_distance(of_it.trace_term).distance)

    return {
        "forward pass of the layer": forward,
        "norms": lambda: [pooled_norms(tokens) for tokens in (vision, text)],
        "medians": lambda: [pooled_median(tokens) for tokens in (vision, text)],
        "covariances": lambda: [pooled_moments(tokens) for tokens in (vision, text)],
        "decomposition with vectors": layer.transport,
        "influences": lambda: layer.influences(maps, 1.0),
        "all statistics of the layer, as a run takes them": statistics,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    started, processor_started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - processor_started


if __name__ == "__main__":
    main()
