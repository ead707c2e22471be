"""One checkpoint's numbers for other people's documents: a model-index block, a methods sentence, BibTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from mir_plugin import __version__
from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import on_a_line
from mir_plugin.reports.board.board import Board, BoardRow, ScoreEntry
from mir_plugin.reports.read.benchmarks import TABLE, VLMEVALKIT, Benchmark
from mir_plugin.reports.read.identity import resolved
from mir_plugin.reports.view.columns import rounded
from mir_plugin.results import MirConfig

TASK = {"type": "image-text-to-text"}
HOSTS = {TABLE: "a table of scores", VLMEVALKIT: "VLMEvalKit"}
SAMPLES = {"embedded": "those that ship with mir-plugin"}
N_LISTED = 8  # names in one message
BIBTEX = """\
@article{huang2024deciphering,
  title   = {Deciphering Cross-Modal Alignment in Large Vision-Language Models with Modality Integration Rate},
  author  = {Huang, Qidong and Dong, Xiaoyi and Zhang, Pan and Zang, Yuhang and Cao, Yuhang and Wang, Jiaqi and
             Lin, Dahua and Zhang, Weiming and Yu, Nenghai},
  journal = {arXiv preprint arXiv:2410.07167},
  year    = {2024}
}

@software{mir_plugin,
  title   = {mir-plugin: Modality Integration Rate beside your benchmarks},
  author  = {{mir-plugin contributors}},
  version = {VERSION}
}
"""


def find_row(board: Board, checkpoint: str) -> BoardRow:
    """The row of a checkpoint: by name, path, the last part of its path, or what was fine-tuned from it.

    Raises:
        MirError: if none has it, or several.
    """
    exact = {checkpoint.rstrip("/"), resolved(checkpoint)}
    for names in (
        lambda row: {row.name, row.identity, row.finetuned} - {""},
        lambda row: {PurePosixPath(one).name for one in (row.identity, row.finetuned) if one},
    ):
        found = [row for row in board.rows if names(row) & exact]
        if len(found) == 1:
            return found[0]
        if found:
            raise MirError(f"{checkpoint!r} means several checkpoints: {_listed(found)}. Give the whole path.")
    raise MirError(f"no checkpoint {checkpoint!r} in the report; it has {_listed(board.rows) or 'none'}.")


def _listed(rows: Any) -> str:
    names = [on_a_line(row.name) for row in rows]
    return ", ".join(names[:N_LISTED]) + (", …" if len(names) > N_LISTED else "")


def to_card(board: Board, row: BoardRow) -> str:
    """Markdown to paste from: YAML for the top of a Hugging Face model card, a methods sentence, BibTeX."""
    entries = {entry.benchmark: entry for entry in board.entries if entry.used and entry.identity == row.identity}
    scored = [(benchmark, entries.get(benchmark.key)) for benchmark in board.benchmarks if benchmark.key in row.scores]
    index = yaml.safe_dump(
        {"model-index": [{"name": on_a_line(row.finetuned or row.name), "results": list(_results(row, scored))}]},
        sort_keys=False, allow_unicode=True, width=1000,
    )  # fmt: skip
    version = row.result.versions.get("mir-plugin", "") if row.result else ""
    parts = [
        "## For the top of a model card (README.md), between the two lines of dashes",
        f"```yaml\n{index}```",
        "## Methods",
        " ".join(_methods(row, scored)),
        "## BibTeX",
        f"```bibtex\n{BIBTEX.replace('VERSION', version or __version__)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _results(row: BoardRow, scored: list[tuple[Benchmark, ScoreEntry | None]]) -> Iterator[dict[str, Any]]:
    if row.mir is not None:
        of = {"checkpoint": on_a_line(row.identity)} if row.finetuned else {}
        yield {
            "task": dict(TASK),
            "dataset": {"name": f"image-text pairs: {_samples(row)}", "type": "mir", "args": _facts(row) | of},
            "metrics": [
                {"type": "mir", "name": "Modality Integration Rate (lower is better)", "value": round(row.mir, 4)}
            ],
        }
    for benchmark, entry in scored:
        args: dict[str, Any] = {}
        if entry and entry.host != TABLE:
            args = {"host": entry.host, "task": on_a_line(entry.task), "field": on_a_line(entry.metric)}
        if entry and not entry.complete:
            args["partial"] = True
        unit = "%" if benchmark.unit == "percent" else benchmark.unit
        yield {
            "task": dict(TASK),
            "dataset": {"name": on_a_line(benchmark.name), "type": on_a_line(benchmark.key), "args": args},
            "metrics": [
                {
                    "type": "score",
                    "name": f"{on_a_line(benchmark.name)} ({unit})",
                    "value": float(rounded(row.scores[benchmark.key], benchmark.decimals)),
                }
            ],
        }


def _facts(row: BoardRow) -> dict[str, Any]:
    low_high = {"interval_95": [round(end, 4) for end in row.mir_interval]} if row.mir_interval else {}
    prints = row.result.fingerprints if row.result else {}
    named = {f"{name}_fingerprint": prints[name] for name in ("samples", "protocol", "checkpoint") if prints.get(name)}
    return {"n_samples": row.n_samples, **low_high, **named} if row.n_samples else {**low_high, **named}


def _samples(row: BoardRow) -> str:
    source = row.result.samples.get("source") if row.result else None
    return SAMPLES.get(str(source), on_a_line(str(source))) if source else "not stated"


def _methods(row: BoardRow, scored: list[tuple[Benchmark, ScoreEntry | None]]) -> Iterator[str]:
    name = on_a_line(row.name)
    if row.mir is not None:
        n = f" on {row.n_samples} image-text pairs ({_samples(row)})" if row.n_samples else ""
        version = row.result.versions.get("mir-plugin") if row.result else None
        tool = f" with mir-plugin {version}" if version else ""
        yield f"We measured the Modality Integration Rate (MIR; Huang et al., 2024) of {name}{tool}{n}: {_value(row)}."
        yield from _protocol(row)
    if scored:
        whose = f"the model fine-tuned from it ({on_a_line(row.finetuned)})" if row.finetuned else name
        values = ", ".join(
            f"{on_a_line(one.name)} {rounded(row.scores[one.key], one.decimals)}{' %' if one.unit == 'percent' else ''}"
            f"{' (part of the benchmark)' if entry and not entry.complete else ''}"
            for one, entry in scored
        )
        hosts = list(dict.fromkeys(HOSTS.get(entry.host, entry.host) for _, entry in scored if entry))
        yield f"Scores of {whose}, from {' and '.join(hosts)}: {values}."


def _value(row: BoardRow) -> str:
    value = f"MIR = {rounded(row.mir or 0.0, 3)}"
    if row.mir_interval:
        value += f" (95 % interval over samples {rounded(row.mir_interval[0], 3)} to {rounded(row.mir_interval[1], 3)})"
    return f"{value}; lower is better"


def _protocol(row: BoardRow) -> Iterator[str]:
    if row.result is None:
        return
    config, dtype = row.result.config, row.result.facts.get("dtype")
    outliers: Mapping[str, str] = {
        "replace": f"token norms beyond {config.n_sigma:g} standard deviations of the median replaced",
        "remove": f"tokens with norms beyond {config.n_sigma:g} standard deviations of the median removed",
        "none": "no treatment of outliers",
    }
    parts = [
        "exact trace term",
        "text-centric normalization" if config.normalize else "no normalization",
        outliers[config.outliers],
        *([f"{dtype} forward pass"] if dtype else []),
    ]
    default = " as in the paper" if config == MirConfig() else ""
    yield f"Protocol{default}: {', '.join(parts)}."
