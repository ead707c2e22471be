"""Indicators of checkpoints beside their scores: columns like those of benchmarks, and the table that fills them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mir_plugin.files.outside_text import csv_table
from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.reports.read.headline_table import BENCHMARKS, TRAINING_LOSS

# What every report has already: from mir.json, or under another name.
IN_MIR_JSON = frozenset({"mir", "mir_published", "mir_published_upper"})
KNOWN_AS = {"training_loss": TRAINING_LOSS}


def with_indicators(names: Iterable[str], higher_is_better: Collection[str]) -> tuple[Benchmark, ...]:
    """All known benchmarks, and a column for each of these indicators; none enters an average."""
    added = (name for name in names if name not in IN_MIR_JSON and name not in KNOWN_AS)
    return (
        *BENCHMARKS,
        *(
            Benchmark(
                name,
                name,
                columns=(name,),
                unit="points",
                higher_is_better=name in higher_is_better,
                averaged=False,
                decimals=3,
            )
            for name in added
        ),
    )


def indicator_table(values: Mapping[str, Mapping[str, float]]) -> str:
    """CSV that a report takes as a source: checkpoint path → its indicators by name."""
    names = [name for name in dict.fromkeys(name for row in values.values() for name in row) if name not in IN_MIR_JSON]
    headings = ["checkpoint", *(KNOWN_AS.get(name, name) for name in names)]
    return csv_table([headings, *([checkpoint, *map(row.get, names)] for checkpoint, row in values.items())])
