"""One measured task in a process of its own: ``python -m benchmarks.measurements '{"task": "ours", ...}'`` → JSON."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.published import published_mir
from mir_plugin.engine.batches import default_batch_size, packed_by_length
from mir_plugin.measurement.measure import measure
from mir_plugin.metric.frechet import trace_term_by_eigenvalues, transport_by_eigenvectors
from mir_plugin.metric.moments import Moments, moments
from mir_plugin.metric.polar import trace_term_by_polar, transport_by_polar
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.processes import ALONE, Group, launched_group
from mir_plugin.samples.embedded import N_EMBEDDED_SAMPLES, embedded_samples, prose_passages
from mir_plugin.samples.sample_set import Sample, SampleSet


def main() -> None:
    """Run the task that the argument names and print what was measured."""
    arguments = json.loads(sys.argv[1])
    task = arguments.pop("task")
    if task == "trace":
        print(json.dumps(trace_routes(**arguments)))
        return
    with launched_group("cpu") as group:
        measured = measured_run(task, **arguments, group=group)
        if group.rank == 0:
            print(json.dumps(measured))


def measured_run(
    task: str,
    checkpoint: str,
    n_samples: int,
    *,
    text_words: int,
    uncertainty: bool = False,
    device: str = "auto",
    n_threads: int | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """What "ours", "bare", "published" or "published accurate" took, the checkpoint loaded and run once before.

    Returns:
        "seconds" on the clock and "processor seconds" of this process; "memory", the growth of its peak on the
        device (bytes), and the peaks as such, "host memory" and "GPU memory"; "features", bytes of one layer's
        tokens of all samples; "mir" and "device".
    """
    if n_threads:
        torch.set_num_threads(n_threads)
    adapter: Any = load_adapter(Path(checkpoint), LoadOptions(device=device))
    weight = adapter.decoder.final_norm.weight
    samples = samples_of(n_samples, text_words)
    bare_forwards(adapter, samples.samples[:1])  # what a first call allocates for good belongs to neither side
    on_gpu = adapter.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    memory_before = _peak_memory(on_gpu)
    started, processor_started = time.perf_counter(), time.process_time()
    value, n_tokens = None, 0
    if task == "ours":
        result = measure(adapter, samples, checkpoint=checkpoint, with_uncertainty=uncertainty, group=group)
        value, n_tokens = result.mir, result.layers[0].n_vision_tokens + result.layers[0].n_text_tokens
    elif task == "bare":
        bare_forwards(adapter, samples.samples)
    else:
        value = published_mir(adapter, samples.samples, accurate=task == "published accurate")
    if on_gpu:
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - processor_started,
        "memory": _peak_memory(on_gpu) - memory_before,
        "host memory": _peak_memory(on_gpu=False),
        "GPU memory": _peak_memory(on_gpu) if on_gpu else None,
        "features": n_tokens * weight.shape[0] * weight.element_size(),
        "mir": value,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def bare_forwards(adapter: Any, samples: Sequence[Sample]) -> None:
    """The forward passes that MIR is made of, in the same batches, and nothing else: no attentions, nothing kept."""
    for indices in packed_by_length(samples, default_batch_size(adapter, samples)):
        adapter.forward(adapter.encode([samples[index] for index in indices]))


def samples_of(n: int, text_words: int) -> SampleSet:
    """The embedded images, over and over where there are too few, each with passages of at least so many words."""
    images = embedded_samples(min(n, N_EMBEDDED_SAMPLES)).samples
    passages = itertools.cycle(prose_passages())

    def text() -> str:
        words: list[str] = []
        while len(words) < text_words:
            words += next(passages).split()
        return " ".join(words)

    return SampleSet(tuple(Sample(f"{index}", images[index % len(images)].image, text()) for index in range(n)))


def trace_routes(d: int, device: str = "cpu", with_scipy: bool = True) -> dict[str, float]:
    """Seconds of the trace term at width d by each route, of covariances whose spectra fall over six decades.

    "with errors" is the decomposition with vectors that a run with standard errors makes, by the route "cholesky";
    "polar" and "polar with errors" are the same two without eigenvalues, the way of accelerators.
    """
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -3, d)

    def features(n: int) -> torch.Tensor:
        return (torch.randn(n, d, generator=generator) * scales).to(device)

    few, many = d // 4, 2 * d
    sets = {
        name: (moments(features(n_v)), moments(features(n_t)))
        for name, n_v, n_t in (("cross", few, few), ("gram", many, few), ("cholesky", many, many))
    }
    sets["eigh"] = (_singular(sets["cholesky"][0]), sets["cholesky"][1])
    seconds = {}
    trace_term_by_eigenvalues(*sets["cholesky"]).value.item()  # libraries are initialised, covariances finished
    for route, (vision, text) in sets.items():
        started = time.perf_counter()
        term = trace_term_by_eigenvalues(vision, text)
        term.value.item()
        seconds[route] = time.perf_counter() - started
        assert term.route == route, term.route
    others: dict[str, Callable[[Moments, Moments], torch.Tensor]] = {
        "with errors": lambda vision, text: transport_by_eigenvectors(vision, text).trace_term.value,
        "polar": trace_term_by_polar,
        "polar with errors": lambda vision, text: transport_by_polar(vision, text)[2],
    }
    for name, decompose in others.items():
        started = time.perf_counter()
        decompose(*sets["cholesky"]).item()
        seconds[name] = time.perf_counter() - started
    if with_scipy:
        import scipy.linalg

        vision, text = sets["cholesky"]
        product = (vision.cov @ text.cov).cpu().numpy()
        started = time.perf_counter()
        scipy.linalg.sqrtm(product)
        seconds["scipy sqrtm"] = time.perf_counter() - started
    return seconds


def _singular(one: Moments) -> Moments:
    """The same covariance with one direction removed, so that Cholesky fails."""
    cov = one.cov.clone()
    cov[-1] = 0
    cov[:, -1] = 0
    return Moments(one.n, one.mean, cov)


def _peak_memory(on_gpu: bool) -> int:
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss: a started process takes over the peak of the one that started it.
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
