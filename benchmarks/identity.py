"""``python -m benchmarks.identity``: what knowing a checkpoint by its content costs, as a share of a run.

Processor seconds, so that other work on the machine matters little; files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import Size, write_checkpoint
from benchmarks.measurements import samples_of
from mir_plugin.engine.inputs import ReceivedInputs
from mir_plugin.files.fingerprint import files_that_count, folder_fingerprint
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.llava import adapter as llava_adapter
from mir_plugin.model_adapters.weights.module_fingerprint import holds_stored
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights


def main() -> None:
    """Write the checkpoint of parts a and b, take its fingerprint in several ways, measure it, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--text-words", type=int, default=781, help="words of each text; the mean of CNN/DM")
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "mir-benchmarks")
    options = parser.parse_args()
    folder = write_checkpoint(Size(), options.checkpoints)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        spent = _costs(folder, options.samples, options.text_words)
    n_bytes = sum(path.stat().st_size for path in files_that_count(folder))
    whole, read = spent["load and measure"], spent["read the files"]
    print(f"{n_bytes / 1e9:.2f} GB, {options.samples} samples, texts of {options.text_words} words\n")
    print("| | processor seconds | share of a run | ÷ reading the files |\n|---|---|---|---|")
    for name, seconds in spent.items():
        print(f"| {name} | {seconds:.3f} | {100 * seconds / whole:.2f} % | {seconds / read:.2f} |")


def _costs(folder: Path, n_samples: int, text_words: int) -> dict[str, float]:
    spent = {
        "read the files": _timed(lambda: _read(folder)),
        "hash them, the first time": _timed(lambda: folder_fingerprint([folder])),
        "hash them again, digests remembered": _timed(lambda: folder_fingerprint([folder])),
    }
    samples = samples_of(n_samples, text_words)
    noted = {"seconds": 0.0}
    _count_time(llava_adapter, "prepared_image", noted)
    _count_time(llava_adapter, "prepared_sample", noted)
    _count_time(ReceivedInputs, "add", noted)
    started = time.process_time()
    adapter: Any = load_adapter(folder, LoadOptions(device="cpu"))
    measure(adapter, samples, checkpoint=str(folder))
    spent["load and measure"] = time.process_time() - started
    spent["of that: digests of every sample's inputs"] = noted["seconds"]
    stored = [*open_checkpoint_weights(folder).values(), *open_checkpoint_weights(folder / "vision_tower").values()]
    spent["a host's model against its files, the first time"] = _timed(lambda: holds_stored(adapter.model, stored))
    spent["a host's model against its files, again"] = _timed(lambda: holds_stored(adapter.model, stored))
    return spent


def _read(folder: Path) -> None:
    buffer = bytearray(16 << 20)
    for path in files_that_count(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _count_time(owner: Any, name: str, noted: dict[str, float]) -> None:
    """Add the time of every call of a function to ``noted``."""
    function = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            noted["seconds"] += time.process_time() - started

    setattr(owner, name, counted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
