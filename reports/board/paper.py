"""The tables of the MIR paper (arXiv 2410.07167, ICCV 2025) as sources of a report: ``mir report --paper``."""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass

from mir_plugin.reports.board.config import ModelEntry, ReportConfig
from mir_plugin.reports.read.benchmarks import TABLE, AverageSet, find_column, weighted_average
from mir_plugin.reports.read.headline_table import BENCHMARKS
from mir_plugin.reports.read.identity import NAME
from mir_plugin.reports.read.records import (
    CheckpointRef,
    Comparability,
    Measurement,
    ParsedSources,
    Problem,
    Run,
    Score,
)

COMPARABILITY = Comparability("published program, default mode", "the paper's 100", "the paper's")
STATED = "Average"
# Every table of the paper with scores has these, so only this average means the same in all of them.
COMMON_BENCHMARKS = ("mmstar", "mmbench", "seed_image", "textvqa")
ROUNDING = 0.051  # averages are printed with one decimal


@dataclass(frozen=True)
class PaperTable:
    """One table: its file, what to call it, and how a row is named from its columns."""

    file: str
    group: str
    row_name: str


TABLES = (
    PaperTable("data_detailedness.csv", "Table 1: caption length", "captions of {caption_len} words"),
    PaperTable("training_recipes.csv", "Table 2: training recipe", "lr {lr}, warm-up {warmup}, {scheduler}"),
    PaperTable("training_strategies.csv", "Table 3: trained part of the LLM", "LLM trained: {unlock_llm}"),
    PaperTable("connectors.csv", "Table 4: connector", "connector {connector}"),
    PaperTable("moca_7b.csv", "Table 5: MoCa, 7B", "{model}"),
    PaperTable("moca_13b.csv", "Suppl. table 2: MoCa, 13B", "{model}"),
    PaperTable("base_llms.csv", "Table 7: base LLM", "{base_llm}, {projector}"),
)
SCALING = PaperTable("data_scaling_metrics.csv", "Suppl. table 1: pre-training data", "{scale} pre-training samples")


def paper_rows(file: str) -> list[dict[str, str]]:
    """The rows of one of the paper's tables, as they stand in the CSV file."""
    folder = importlib.resources.files("mir_plugin.reports") / "data" / "paper_tables"
    return list(csv.DictReader((folder / file).read_text(encoding="utf-8").splitlines()))


def paper_sources() -> ParsedSources:
    """Published MIR and scores of every table that has them, one checkpoint per row."""
    rows = [_row(table, table.row_name.format(**row), row) for table in TABLES for row in paper_rows(table.file)]
    return ParsedSources.total([*rows, *_scaling()])


def paper_config() -> ReportConfig:
    """Groups by table, the average over what all tables share, and what a reader must know about the numbers."""
    models = tuple(
        ModelEntry((identity(table, name),), name=f"{name} [{table.group.split(':')[0]}]", group=table.group)
        for table, name in _names()
    )
    connector = next(row["MIR"] for row in paper_rows("connectors.csv") if row["connector"] == "mlp2x")
    base = next(row["MIR"] for row in paper_rows("base_llms.csv") if row["base_llm"] == "Vicuna-7B-v1.5")
    return ReportConfig(
        title="MIR and benchmark scores, as the paper prints them",
        models=models,
        average=AverageSet("common-4", "the four benchmarks that all of the paper's tables have", COMMON_BENCHMARKS),
        notes=(
            f"The paper gives two MIR values for the same nominal model, LLaVA-v1.5 7B with a two-layer MLP: "
            f"{connector} (tables 2 and 4) and {base} (tables 5 and 7). Their difference is as large as most effects "
            "in the tables, so compare within a table; pooled correlations mix both.",
            "Average is over MMStar, MMBench, SEED-Image and TextVQA, which every table of scores has. "
            "Average (as stated) is the paper's own, over different benchmarks in different tables.",
            "Learning rate 1e-3 with warm-up 3e-2 and cosine (table 2) and connector mlp2x (table 4) are one model, "
            "counted twice in pooled correlations.",
        ),
    )


def identity(table: PaperTable, name: str) -> str:
    """Name under which a row's records are joined."""
    return f"{table.file.removesuffix('.csv')}/{name}"


def _names() -> list[tuple[PaperTable, str]]:
    names = [(table, table.row_name.format(**row)) for table in TABLES for row in paper_rows(table.file)]
    return names + [(SCALING, SCALING.row_name.format(scale=scale)) for scale in _scaling_columns()]


def _row(table: PaperTable, name: str, row: Mapping[str, str]) -> ParsedSources:
    checkpoint = CheckpointRef(name, (NAME + identity(table, name),))
    numbers = {column: float(text) for column, text in row.items() if find_column(column, BENCHMARKS) and text}
    scores = tuple(
        Score(checkpoint, TABLE, column, column, value, run_id=table.file) for column, value in numbers.items()
    )
    measurement = Measurement(checkpoint, float(row["MIR"]), COMPARABILITY, n_samples=100, run_id=table.file)
    run = Run(table.file, TABLE, name, f"arXiv 2410.07167, {table.group}", tasks=tuple(numbers))
    return ParsedSources(scores, (measurement,), (run,), _average_problem(table, name, numbers))


def _average_problem(table: PaperTable, name: str, numbers: Mapping[str, float]) -> tuple[Problem, ...]:
    """Whether the printed average follows from the printed scores by the paper's rule."""
    scores = {
        b.key: value for column, value in numbers.items() if (b := find_column(column, BENCHMARKS)) and b.averaged
    }
    computed = weighted_average(scores, dict.fromkeys(scores, 1.0), BENCHMARKS)
    if computed is None or abs(computed - numbers[STATED]) <= ROUNDING:
        return ()
    what = f"the paper prints the average {numbers[STATED]}; the scores that it prints give {computed:.2f}"
    remedy = "Nothing to do: the report takes the scores."
    return (Problem("note", "incomparable", f"{name} ({table.group})", what, remedy),)


def _scaling_columns() -> list[str]:
    return [column for column in paper_rows(SCALING.file)[0] if column != "metric"]


def _scaling() -> list[ParsedSources]:
    """This table is printed with one column per checkpoint."""
    by_metric = {row["metric"]: row for row in paper_rows(SCALING.file)}
    mir, average = by_metric["MIR"], by_metric["post_sft_average_7"]
    return [
        _row(SCALING, SCALING.row_name.format(scale=scale), {"MIR": mir[scale], STATED: average[scale]})
        for scale in _scaling_columns()
    ]
