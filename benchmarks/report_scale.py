"""Time and memory of a report on 500 checkpoints and 30 benchmarks: python benchmarks/report_scale.py"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.build import FORMATS, build_report
from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.results import LayerDistance, MirConfig, MirResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=500)
    parser.add_argument("--benchmarks", type=int, default=30)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), options.checkpoints, options.benchmarks, options.layers)
        config = ReportConfig(
            benchmarks=tuple(Benchmark(f"b{i}", f"Bench {i}") for i in range(options.benchmarks)),
            formats=tuple(options.formats),
        )
        started, cpu_started = time.perf_counter(), time.process_time()
        report = build_report(sources, Path(folder) / "out", config)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        sizes = ", ".join(f"{name} {path.stat().st_size / 1e6:.1f} MB" for name, path in report.paths.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.checkpoints} checkpoints x {options.benchmarks} benchmarks x {options.layers} layers: "
        f"{seconds:.1f} s ({cpu_seconds:.1f} s of processor time), peak memory {peak:.0f} MiB ({sizes})"
    )


def write_sources(folder: Path, n_checkpoints: int, n_benchmarks: int, n_layers: int) -> list[Path]:
    """One table of scores and one mir.json per checkpoint, with drawn numbers."""
    random = np.random.default_rng(0)
    quality = random.normal(size=n_checkpoints)
    lines = [",".join(["checkpoint", *(f"b{i}" for i in range(n_benchmarks))])]
    for index in range(n_checkpoints):
        scores = 50 + 5 * quality[index] + random.normal(size=n_benchmarks)
        lines.append(",".join([f"runs/model-{index}", *(f"{score:.2f}" for score in scores)]))
        distances = np.exp(5 - 0.2 * quality[index] + 0.1 * random.normal(size=n_layers))
        result = MirResult(
            checkpoint=f"runs/model-{index}",
            family="llava-1.5",
            mir=float(np.log10(distances.sum())),
            mir_published=None,
            mir_published_upper=None,
            n_samples=100,
            estimator="exact",
            config=MirConfig(),
            fingerprints={"samples": "s", "protocol": "p", "checkpoint": f"c{index}", "versions": "v"},
            layers=tuple(drawn_layer(k + 1, float(distance)) for k, distance in enumerate(distances)),
        )
        result.save(folder / "mir" / f"model-{index}" / "mir.json")
    (folder / "scores.csv").write_text("\n".join(lines), encoding="utf-8")
    return [folder / "scores.csv", folder / "mir"]


def drawn_layer(layer: int, distance: float) -> LayerDistance:
    return LayerDistance(
        layer=layer,
        distance=distance,
        distance_published=distance * 1.1,
        distance_published_upper=distance * 1.2,
        mean_term=distance / 2,
        trace_vision=distance / 2,
        trace_text=distance / 4,
        trace_term=distance / 8,
        trace_product=distance / 16,
        trace_route="cholesky",
        n_vision_tokens=57_600,
        n_text_tokens=5_210,
        n_vision_outliers=3,
        n_text_outliers=1,
        scale=0.03,
        mean_norm_vision=33.0,
        mean_norm_text=30.0,
        norm_ratio=1.1,
        mean_cosine=0.1,
        effective_rank_vision=40.0,
        effective_rank_text=80.0,
    )


if __name__ == "__main__":
    main()
