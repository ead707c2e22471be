"""``python -m benchmarks.coverage``: how often the 95 % interval covers what it should, on samples of a known kind.

Many sets of samples are drawn from one distribution, whose tokens share an offset within a sample. An interval covers
if it holds the mean MIR of all sets. Each row is a kind of set, each column a way to the standard error: with the
derivatives alone, with every sample as its own group, and as ``mir run`` does it. In brackets is the root mean square
standard error over the standard deviation of MIR.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.uncertainty import half_width, heavy_groups, uncertainty
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures

Lengths = Callable[[int, torch.Generator], Sequence[int]]


@dataclass(frozen=True)
class Kind:
    """A kind of sample set.

    Attributes:
        lengths: text tokens of each of n distinct samples.
        copies: how often each sample occurs.
    """

    name: str
    lengths: Lengths
    copies: int = 1


def lognormal(spread: float) -> Lengths:
    """Lengths around 20 tokens whose logarithms have this standard deviation."""

    def draw(n: int, generator: torch.Generator) -> list[int]:
        return [max(2, round(20 * math.exp(spread * one))) for one in torch.randn(n, generator=generator).tolist()]

    return draw


def one_long(times: int) -> Lengths:
    """20 tokens each, but for the first text, which is this many times as long."""
    return lambda n, _: [20 * times, *[20] * (n - 1)]


KINDS = (
    Kind("equal lengths", one_long(1)),
    Kind("lengths within a factor of 2", lognormal(0.5)),
    Kind("lengths within a factor of 8", lognormal(1.5)),
    Kind("one text 5 times as long", one_long(5)),
    Kind("one text 40 times as long", one_long(40)),
    Kind("every sample five times", lognormal(0.5), copies=5),
)
WAYS = ("derivatives", "ungrouped", "as measured")


def sample_set(kind: Kind, n: int, d: int, seed: int) -> tuple[TokenFeatures, list[int]]:
    """Features of one set at one layer, and the group of each of its samples."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1, d)
    vision, text = [], []
    for length in kind.lengths(n, generator):
        offsets = 0.6 * torch.randn(2, d, generator=generator)
        vision.append((2 * torch.randn(16, d, generator=generator) + offsets[0]) * spread + 0.3)
        text.append((torch.randn(length, d, generator=generator) + offsets[1]) * spread.flip(0))
    vision, text = vision * kind.copies, text * kind.copies
    counts = tuple(map(len, vision)), tuple(map(len, text))
    return TokenFeatures(1, torch.cat(vision), torch.cat(text), *counts), list(range(n)) * kind.copies


def estimates(features: TokenFeatures, groups: list[int]) -> tuple[float, dict[str, tuple[float, float]]]:
    """MIR of one layer, and by every way its standard error and half the interval."""
    layer = PooledLayer.of(features, MirConfig())
    maps = layer.transport()
    distance = layer.layer_distance(maps.trace_term).distance
    each = list(range(len(groups)))
    heavy = heavy_groups(groups, features.vision_counts, features.text_counts)
    found = {}
    for way, of, left_out in zip(WAYS, (groups, each, groups), ((), (), heavy), strict=True):
        influences = layer.group_influences(maps, distance, of, left_out)
        error = uncertainty([distance], [influences], len(groups), left_out)["standard_error"]
        found[way] = (error, half_width(error, len(influences)))
    return math.log10(distance), found


def coverage(kind: Kind, n: int, d: int, n_sets: int) -> dict[str, tuple[float, float]]:
    """By every way the share of intervals that cover, and the root mean square error over the spread of MIR."""
    drawn = [estimates(*sample_set(kind, n, d, seed)) for seed in range(n_sets)]
    values = [value for value, _ in drawn]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return {
        way: (
            statistics.fmean(abs(value - mean) <= found[way][1] for value, found in drawn),
            math.sqrt(statistics.fmean(found[way][0] ** 2 for _, found in drawn)) / spread,
        )
        for way in WAYS
    }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--samples", type=int, default=30, help="distinct samples of a set")
    parser.add_argument("--dimensions", type=int, default=8)
    parser.add_argument("--sets", type=int, default=400)
    options = parser.parse_args()
    print(f"| kind of set | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for kind in KINDS:
        found = coverage(kind, options.samples, options.dimensions, options.sets)
        print(f"| {kind.name} | {' | '.join(f'{share:.0%} ({ratio:.2f})' for share, ratio in found.values())} |")


if __name__ == "__main__":
    main()
