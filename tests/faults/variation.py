"""How far MIR of one checkpoint moves with what should not matter: ``python tests/faults/variation.py CHECKPOINT``.

Prints one line for each variation: MIR, its difference, and the same of the
layer that moves most. The first line is one thread, one sample at a time, breadth-first.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from mir_plugin.engine.replay import check_replay
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.results import MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.samples.sources import from_folders


def variations(checkpoint: Path, tower: Path | None, samples: SampleSet) -> Iterator[tuple[str, MirResult]]:
    """(what was varied, result); the first two are the same."""
    import mir_plugin.measurement.measure

    def result(*, threads: int = 1, dtype: str = "float32", batch_size: int = 1) -> MirResult:
        torch.set_num_threads(threads)
        options = LoadOptions(vision_tower=tower, dtype=dtype, device="cpu")
        adapter = load_adapter(checkpoint, options)
        return measure(adapter, samples, checkpoint=str(checkpoint), batch_size=batch_size)

    yield "one thread, batches of one", result()
    yield "the same again", result()
    for threads in (2, 4):
        yield f"{threads} threads", result(threads=threads)
    for batch_size in (2, 4, len(samples)):
        yield f"batches of {batch_size}", result(batch_size=batch_size)
    check = mir_plugin.measurement.measure.check_replay
    mir_plugin.measurement.measure.check_replay = lambda *a: dataclasses.replace(check_replay(*a), path="depth-first")
    yield "depth-first, spooled", result()
    mir_plugin.measurement.measure.check_replay = check
    for dtype in ("bfloat16", "float16"):
        yield dtype, result(dtype=dtype)
        yield f"{dtype}, the same again", result(dtype=dtype)
        yield f"{dtype}, batches of 4", result(dtype=dtype, batch_size=4)


def differences(one: MirResult, other: MirResult) -> tuple[float, float]:
    """Of MIR, and the largest relative one of a layer's distance."""
    layers = [abs(b.distance - a.distance) / a.distance for a, b in zip(one.layers, other.layers, strict=True)]
    return other.mir - one.mir, max(layers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--vision-tower", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument(
        "--embedded", type=int, default=24, help="so many embedded samples, without --images and --texts"
    )
    asked = parser.parse_args()
    samples = from_folders(asked.images, asked.texts) if asked.images else embedded_samples(asked.embedded)
    first: MirResult | None = None
    print(f"{'':28} {'MIR':>19} {'difference':>12} {'of a layer, relative':>22}")
    for name, result in variations(asked.checkpoint, asked.vision_tower, samples):
        first = first or result
        of_mir, of_layer = differences(first, result)
        print(f"{name:28} {result.mir:19.15f} {of_mir:12.1e} {of_layer:22.1e}")


if __name__ == "__main__":
    main()
