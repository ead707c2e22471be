"""Which number of which benchmark counts: one declared table of headline fields, scales and column names.

Scales were read in lmms-eval 0.7.3 and VLMEvalKit e8e78f05; the recorded trees under tests/golden hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LMMS_EVAL = "lmms-eval"
VLMEVALKIT = "vlmevalkit"
TABLE = "table"

FRACTION = 100.0  # factor from 0-1 to percent
PERCENT = 1.0
POINTS = 1.0
ROUNDING = 1e-6

TRAINING_LOSS = "train_loss"


@dataclass(frozen=True)
class Headline:
    """Where one host writes a benchmark's headline number.

    Attributes:
        tasks: names of the benchmark in that host; compared without regard to case.
        metric: lmms-eval: the metric before the comma; VLMEvalKit: ``split|column``, ``*`` for any split.
        factor: what brings the host's number to the benchmark's own scale.
    """

    host: str
    tasks: tuple[str, ...]
    metric: str
    factor: float = FRACTION


@dataclass(frozen=True)
class Benchmark:
    """One column of a report.

    Attributes:
        key: stable short name, used in configurations and files.
        name: heading.
        headlines: where each host writes it; the first that matches is read.
        columns: headings under which plain tables give it, on the benchmark's own scale.
        unit: "percent" (0-100) or "points".
        to_percent: factor that enters the average; MME's 2000 points of perception count as percent after / 20.
        higher_is_better: direction of "best".
        averaged: whether it may enter the average.
        decimals: with which it is shown.
        points: how many there are to reach, in the unit "points"; None where there is no limit.
    """

    key: str
    name: str
    headlines: tuple[Headline, ...] = ()
    columns: tuple[str, ...] = ()
    unit: Literal["percent", "points"] = "percent"
    to_percent: float = 1.0
    higher_is_better: bool = True
    averaged: bool = True
    decimals: int = 1
    points: float | None = None

    def can_be(self, value: float) -> bool:
        """Whether a score lies on the benchmark's scale: one that does not was damaged, or is on another scale."""
        highest = 100.0 if self.unit == "percent" else self.points
        return highest is None or -ROUNDING <= value <= highest + ROUNDING


def _accuracy(key: str, name: str, lmms: str, metric: str, vlm: Sequence[str] = (), *columns: str) -> Benchmark:
    headlines = (
        Headline(LMMS_EVAL, (lmms,), metric),
        Headline(VLMEVALKIT, tuple(vlm), "*|Overall"),
        Headline(VLMEVALKIT, tuple(vlm), "Overall|Accuracy", PERCENT),
    )
    return Benchmark(key, name, headlines, columns)


BENCHMARKS: tuple[Benchmark, ...] = (
    _accuracy("mmstar", "MMStar", "mmstar", "average", ["MMStar"]),
    Benchmark(
        "mme",
        "MME",
        (
            Headline(LMMS_EVAL, ("mme",), "mme_perception_score", POINTS),
            Headline(VLMEVALKIT, ("MME",), "*|perception", POINTS),
        ),
        ("MME-P", "MME perception"),
        unit="points",
        to_percent=1 / 20,
        points=2000.0,
    ),
    Benchmark(
        "mme_cognition",
        "MME-C",
        (
            Headline(LMMS_EVAL, ("mme",), "mme_cognition_score", POINTS),
            Headline(VLMEVALKIT, ("MME",), "*|reasoning", POINTS),
        ),
        ("MME cognition", "MME reasoning"),
        unit="points",
        averaged=False,
        points=800.0,
    ),
    Benchmark(
        "mmbench",
        "MMBench",
        (
            Headline(LMMS_EVAL, ("mmbench_en_dev", "mmbench_en_dev_static"), "gpt_eval_score", PERCENT),
            Headline(VLMEVALKIT, ("MMBench_DEV_EN", "MMBench"), "dev|Overall"),
        ),
        ("MMB", "MMBench-EN"),
    ),
    Benchmark(
        "mmbench_v11",
        "MMBench v1.1",
        (Headline(VLMEVALKIT, ("MMBench_DEV_EN_V11", "MMBench_V11"), "dev|Overall"),),
        averaged=False,
    ),
    Benchmark(
        "mmbench_cn",
        "MMBench-CN",
        (
            Headline(LMMS_EVAL, ("mmbench_cn_dev",), "gpt_eval_score", PERCENT),
            Headline(VLMEVALKIT, ("MMBench_DEV_CN", "MMBench_CN"), "dev|Overall"),
        ),
        ("MMB_CN", "MMB-CN"),
    ),
    _accuracy("seed_image", "SEED-Image", "seedbench", "seed_image", ["SEEDBench_IMG"], "SEED_I", "SEED-I", "SEED"),
    Benchmark(
        "textvqa",
        "TextVQA",
        (
            Headline(LMMS_EVAL, ("textvqa_val",), "exact_match"),
            Headline(VLMEVALKIT, ("TextVQA_VAL",), "*|Overall", PERCENT),
        ),
        ("TQA", "VQA-T"),
    ),
    Benchmark(
        "scienceqa_image",
        "ScienceQA-Image",
        (
            Headline(LMMS_EVAL, ("scienceqa_img",), "exact_match"),
            Headline(VLMEVALKIT, ("ScienceQA_TEST",), "*|Overall"),
        ),
        ("SQA_I", "SQA-I", "ScienceQA"),
    ),
    Benchmark(
        "pope",
        "POPE",
        (Headline(LMMS_EVAL, ("pope",), "pope_f1_score"), Headline(VLMEVALKIT, ("POPE",), "Overall|Overall", PERCENT)),
        ("POPE F1",),
    ),
    Benchmark(
        "gqa",
        "GQA",
        (
            Headline(LMMS_EVAL, ("gqa",), "exact_match"),
            Headline(VLMEVALKIT, ("GQA_TestDev_Balanced",), "*|Overall", PERCENT),
        ),
    ),
    Benchmark(
        "mmvet",
        "MM-Vet",
        (
            Headline(LMMS_EVAL, ("mmvet",), "gpt_eval_score", PERCENT),
            Headline(VLMEVALKIT, ("MMVet",), "Overall|acc", PERCENT),
        ),
        ("MM_Vet", "MMVet"),
    ),
    _accuracy("mmmu", "MMMU", "mmmu_val", "mmmu_acc", ["MMMU_DEV_VAL"]),
    _accuracy("ai2d", "AI2D", "ai2d", "exact_match", ["AI2D_TEST"]),
    _accuracy("realworldqa", "RealWorldQA", "realworldqa", "exact_match", ["RealWorldQA"]),
    Benchmark(
        "chartqa",
        "ChartQA",
        (
            Headline(LMMS_EVAL, ("chartqa",), "relaxed_overall"),
            Headline(VLMEVALKIT, ("ChartQA_TEST",), "*|Overall", PERCENT),
        ),
    ),
    Benchmark(
        "docvqa",
        "DocVQA",
        (
            Headline(LMMS_EVAL, ("docvqa_val",), "anls"),
            Headline(VLMEVALKIT, ("DocVQA_VAL",), "*|val", PERCENT),
        ),
    ),
    Benchmark("ocrbench", "OCRBench", (Headline(LMMS_EVAL, ("ocrbench",), "ocrbench_accuracy"),)),
    Benchmark("vizwiz", "VizWiz", (Headline(LMMS_EVAL, ("vizwiz_vqa_val",), "exact_match"),)),
    Benchmark("vqav2", "VQAv2", (Headline(LMMS_EVAL, ("vqav2_val",), "exact_match"),)),
    Benchmark(
        "average_stated",
        "Average (as stated)",
        columns=("Average", "Avg", "Avg."),
        averaged=False,
    ),
    Benchmark(
        TRAINING_LOSS,
        "Training loss",
        columns=("loss", "train_loss"),
        unit="points",
        higher_is_better=False,
        averaged=False,
        decimals=3,
    ),
    # The small benchmark that ships with this package; no part of anybody's average.
    Benchmark("mir_digits", "Digits", (Headline(LMMS_EVAL, ("mir_digits",), "exact_match"),), averaged=False),
)


def find_headlines(
    host: str, task: str, benchmarks: Sequence[Benchmark] = BENCHMARKS
) -> Sequence[tuple[Benchmark, Headline]]:
    """Benchmarks that a host's task feeds (MME feeds two), each with the headline to read."""
    wanted = task.casefold()
    return [
        (benchmark, headline)
        for benchmark in benchmarks
        for headline in benchmark.headlines
        if headline.host == host and wanted in (name.casefold() for name in headline.tasks)
    ]


def find_column(heading: str, benchmarks: Sequence[Benchmark] = BENCHMARKS) -> Benchmark | None:
    """The benchmark that a plain table means by this heading: its key, name or one of its other headings."""
    wanted = heading.strip().casefold()
    for benchmark in benchmarks:
        if wanted in (text.casefold() for text in (benchmark.key, benchmark.name, *benchmark.columns)):
            return benchmark
    return None


def weighted_average(
    scores: Mapping[str, float], weights: Mapping[str, float], benchmarks: Sequence[Benchmark]
) -> float | None:
    """Mean of percentages, MME divided by 20 (the paper's rule, checked against its tables); None if one is missing.

    Args:
        scores: benchmark key → value on the benchmark's own scale.
        weights: benchmark key → non-negative weight; keys without weight do not enter.
    """
    factors = {benchmark.key: benchmark.to_percent for benchmark in benchmarks}
    counted = {key: weight for key, weight in weights.items() if weight > 0}
    if not counted or any(key not in scores for key in counted):
        return None
    return sum(scores[key] * factors[key] * weight for key, weight in counted.items()) / sum(counted.values())
