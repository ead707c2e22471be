"""The joint report as one self-contained HTML page: no network, no script from elsewhere.

Everything that comes from outside (names, paths, error texts) reaches the page through Jinja's autoescape or through
``as_script_data``; a content security policy admits nothing but the scripts written here, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.board.cohorts import describe
from mir_plugin.reports.page.charts import as_script_data, chart_data
from mir_plugin.reports.read.records import Verdict
from mir_plugin.reports.view.columns import (
    COEFFICIENTS,
    PROBLEM_COLUMNS,
    RUN_COLUMNS,
    VERDICT_COLUMNS,
    VERDICT_RUN_COLUMNS,
    Column,
    filled,
)
from mir_plugin.reports.view.highlights import highlights
from mir_plugin.reports.view.series import main_scope, scopes
from mir_plugin.reports.view.tables import (
    NEGATIVE_AGREES,
    average_rule,
    correlation_rows,
    leaderboard_headings,
    leaderboard_sections,
    plain_table,
)
from mir_plugin.reports.view.training import dependence, training_runs

SCRIPTS = ("theme.js", "tables.js", "selection.js", "chart_parts.js", "scatter.js", "layers.js", "training.js")
MAX_PICTURES = 24  # some hundred kilobytes each
LIBRARY = "vendor/chart.umd.min.js"
LICENCES = ("vendor/LICENSE-chart.js.txt", "vendor/LICENSE-kurkle-color.txt")


def write_page(board: Board, path: Path) -> Path:
    """Write the page; a reader sees the old file or the whole new one."""
    write_atomically(path, render_page(board))
    return path


def render_page(board: Board) -> str:
    """The whole page as text; the same board gives the same text."""
    library, script = _library(), "\n".join(map(_asset, SCRIPTS))
    environment = Environment(
        loader=PackageLoader("mir_plugin.reports", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    counts = Counter(problem.severity for problem in board.problems)
    return environment.get_template("page.html.j2").render(
        title=storable(board.title),
        subtitle=board.subtitle,
        warnings=[storable(warning) for warning in board.warnings],
        problem_counts=[(severity, counts[severity]) for severity in ("error", "warning", "note") if counts[severity]],
        highlights=list(highlights(board)),
        headings=leaderboard_headings(board),
        sections=leaderboard_sections(board),
        names=[storable(row.name) for row in board.rows],
        groups=sorted({storable(row.group) for row in board.rows if row.group}),
        average_rule=average_rule(board),
        minor=("Rank", "Run", "Step", "Scores of", "MIR SE", "MIR published"),
        sentences=[column.heading for column in VERDICT_RUN_COLUMNS if column.wraps],
        short=("Host", "Date", "Extent"),
        fingerprints=("Samples", "Protocol", "Weights"),
        n_scopes=len(scopes(board)),
        cohort_lines=[storable(f"Cohort {describe(cohort)}.") for cohort in board.cohorts],
        correlation_note=" ".join((NEGATIVE_AGREES, *dependence(board))),
        has_scatter=main_scope(board) is not None,
        verdicts=[_verdict(verdict) for verdict in board.verdicts],
        coefficients=[f"{name} {symbol}" for name, symbol, _ in COEFFICIENTS],
        correlations=correlation_rows(board),
        has_notes=any(correlation.note for correlation in board.correlations),
        has_training=bool(training_runs(board)),
        has_layers=any(row.layers for row in board.rows),
        pictures=_pictures(board),
        n_more_pictures=max(0, len(board.pictures) - MAX_PICTURES),
        problems=plain_table(PROBLEM_COLUMNS, board.problems),
        runs=plain_table(filled(RUN_COLUMNS, board.runs), board.runs),
        data=Markup(as_script_data(chart_data(board))),
        style=Markup(_asset("page.css")),
        library=Markup(library),
        script=Markup(script),
        script_sources=f"{_hash_source(library)} {_hash_source(script)}",
    )


def breakable(text: str) -> Markup:
    """The text with places to break a line behind the parts of a path, which has no spaces.

    >>> breakable("runs/a_step-5 <b>")
    Markup('runs/<wbr>a_<wbr>step-5 &lt;b&gt;')
    """
    return Markup(re.sub(r"([/_])(?=[^/_])", r"\1<wbr>", str(escape(text)).replace("&#x2F;", "/")))


def _verdict(verdict: Verdict) -> dict[str, Any]:
    tables: tuple[tuple[str, Sequence[Column[Any]], Sequence[Any], Sequence[str]], ...] = (
        ("Checkpoints of the sweep", VERDICT_COLUMNS, verdict.rows, ("Checkpoint", "MIR", "Standing")),
        ("Best of each run", VERDICT_RUN_COLUMNS, verdict.runs, ("Best checkpoint", "MIR", "Trend")),
    )
    return {
        "sentence": storable(verdict.sentence),
        "reasons": list(map(storable, verdict.reasons)),
        "warnings": list(map(storable, verdict.warnings)),
        "tables": [
            {"label": label, "minor": _others(columns, on_phones), **plain_table(filled(columns, rows), rows)}
            for label, columns, rows, on_phones in tables
        ],
    }


def _others(columns: Sequence[Column[Any]], kept: Sequence[str]) -> list[str]:
    """Headings that small screens leave out."""
    return [column.heading for column in columns if column.heading not in kept]


def _pictures(board: Board) -> list[dict[str, str]]:
    """The first pictures, each as an address that holds the file itself."""
    return [
        {
            "title": storable(one.title),
            "caption": storable(one.caption),
            "address": f"data:image/png;base64,{base64.b64encode(one.png).decode()}",
        }
        for one in board.pictures[:MAX_PICTURES]
    ]


def _asset(name: str) -> str:
    return (importlib.resources.files("mir_plugin.reports") / "page" / name).read_text(encoding="utf-8")


def _library() -> str:
    """Chart.js with its licences; without the link to a source map, which a browser might try to fetch."""
    code = _asset(LIBRARY).partition("//# sourceMappingURL=")[0]
    return "\n".join([*(f"/*!\n{_asset(name)}*/" for name in LICENCES), code])


def _hash_source(script: str) -> str:
    digest: Any = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
