"""How far MIR of one checkpoint moves with what should not matter: ``python tests/faults/variation.py CHECKPOINT``.

Prints one line for each variation: MIR, its difference, and the same of the
layer that moves most. The first line is one thread, one sample at a time, breadth-first.
``--machines`` varies threads and vector instructions instead, each in a process of its own (tests/conditions.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
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
    parser.add_argument("--machines", action="store_true", help="vary threads and vector instructions instead")
    parser.add_argument("--save", type=Path, help="measure once, as the environment says, and write the result here")
    asked = parser.parse_args()
    if asked.machines:
        print_table(machines(sys.argv[1:]))
        return
    samples = from_folders(asked.images, asked.texts) if asked.images else embedded_samples(asked.embedded)
    if asked.save:
        adapter = load_adapter(asked.checkpoint, LoadOptions(vision_tower=asked.vision_tower, device="cpu"))
        measure(adapter, samples, checkpoint=str(asked.checkpoint)).save(asked.save)
        return
    print_table(variations(asked.checkpoint, asked.vision_tower, samples))


def machines(arguments: list[str]) -> Iterator[tuple[str, MirResult]]:
    """The same measurement in a process of its own under each of the conditions; the first is one thread."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conditions import CONDITIONS, environment_of

    arguments = [one for one in arguments if one != "--machines"]
    with tempfile.TemporaryDirectory() as folder:
        for name in CONDITIONS:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, __file__, *arguments, "--save", str(path)]
            subprocess.run(command, check=True, env=environment_of(name))
            yield name, MirResult.load(path)


def print_table(results: Iterator[tuple[str, MirResult]]) -> None:
    """One line each, against the first."""
    first: MirResult | None = None
    print(f"{'':28} {'MIR':>19} {'difference':>12} {'of a layer, relative':>22}")
    for name, result in results:
        first = first or result
        of_mir, of_layer = differences(first, result)
        print(f"{name:28} {result.mir:19.15f} {of_mir:12.1e} {of_layer:22.1e}")


if __name__ == "__main__":
    main()
