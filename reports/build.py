"""The one entry point of reports: from sources to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically
from mir_plugin.reports.board.board import Board
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.board.paper import paper_config, paper_sources
from mir_plugin.reports.figures.figures import write_figures
from mir_plugin.reports.page.page import write_page
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.reports.text.tables import to_csv, to_latex, to_markdown
from mir_plugin.reports.workbook.workbook import write_workbook


def _text_writer(render: Callable[[Board], str]) -> Callable[[Board, Path], Path]:
    def write(board: Board, path: Path) -> Path:
        write_atomically(path, render(board))
        return path

    return write


# Format → name of its file, or of its folder, and what writes it.
FORMATS: dict[str, tuple[str, Callable[[Board, Path], Path | None]]] = {
    "xlsx": ("report.xlsx", write_workbook),
    "html": ("report.html", write_page),
    "csv": ("report.csv", _text_writer(to_csv)),
    "md": ("report.md", _text_writer(to_markdown)),
    "tex": ("report.tex", _text_writer(to_latex)),
    "figures": ("figures", write_figures),
}


@dataclass(frozen=True)
class ReportFiles:
    """A finished report: what it shows, and the file (for figures the folder) of each format that has something.

    Where nothing was found to show, no file: an earlier report stays.
    """

    board: Board
    paths: dict[str, Path]


def build_report(sources: Sequence[Path | str], out_dir: Path, config: ReportConfig | None = None) -> ReportFiles:
    """Read all sources, join them, and write a report, if there is anything to show.

    Args:
        sources: output folders of lmms-eval and VLMEvalKit, ``mir.json`` files, score tables, and globs of these.
        out_dir: made if it is not there; files of an earlier report in it are replaced.
    Raises:
        MirError: for a source that does not exist, or a configuration that does not hold together.
    """
    config = config or ReportConfig()
    chosen = chosen_formats(config)
    return _write(join(read_sources(sources), config), out_dir, chosen)


def build_paper_report(out_dir: Path, formats: Sequence[str] = ()) -> ReportFiles:
    """The report of the paper's own tables: published MIR against published scores."""
    chosen = chosen_formats(ReportConfig(formats=tuple(formats)))
    return _write(join(paper_sources(), paper_config()), out_dir, chosen)


def chosen_formats(config: ReportConfig) -> tuple[str, ...]:
    """The configured formats, else all. Raises MirError for a name that is no format."""
    unknown = [name for name in config.formats if name not in FORMATS]
    if unknown:
        raise MirError(f"unknown report format {unknown[0]!r}; expected {', '.join(FORMATS)}.")
    return config.formats or tuple(FORMATS)


def _write(board: Board, out_dir: Path, formats: Sequence[str]) -> ReportFiles:
    paths: dict[str, Path] = {}
    if board.is_empty:
        return ReportFiles(board, paths)
    for name in formats:
        file_name, write_format = FORMATS[name]
        path = write_format(board, out_dir / file_name)
        if path is not None:
            paths[name] = path
    return ReportFiles(board, paths)
