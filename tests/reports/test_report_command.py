"""``mir report`` as a user calls it: which files it writes, and whether it shows the page."""

from __future__ import annotations

import webbrowser

import pytest
from typer.testing import CliRunner

from mir_plugin.cli import app
from mir_plugin.errors import MirError
from mir_plugin.reports.build import FORMATS


def report(tmp_path, *options):
    (tmp_path / "scores.csv").write_text("checkpoint,mmstar\nalpha,40\nbeta,42.5\n", encoding="utf-8")
    arguments = ["report", str(tmp_path / "scores.csv"), "--out", str(tmp_path / "out"), *options]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    return {path.name for path in (tmp_path / "out").iterdir()}


def test_only_the_formats_asked_for_are_written(tmp_path):
    assert report(tmp_path, "--formats", "md, csv") == {"report.md", "report.csv"}


def test_formats_of_the_command_line_come_before_those_of_the_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("formats: [tex]\n", encoding="utf-8")
    assert report(tmp_path, "--config", str(tmp_path / "config.yaml"), "--formats", "md") == {"report.md"}


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(MirError, match=r"'pdf'; expected xlsx, html, csv, md, tex, figures"):
        report(tmp_path, "--formats", "md,pdf")


def test_the_help_names_every_format():
    shown = CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert ", ".join(FORMATS) in " ".join(shown.split())


@pytest.mark.parametrize(("options", "shown"), [(["--open"], 1), ([], 0)])
def test_open_shows_the_page_that_was_written(tmp_path, monkeypatch, options, shown):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    report(tmp_path, "--formats", "html", *options)
    assert opened == [(tmp_path / "out" / "report.html").as_uri()] * shown


def test_open_without_a_page_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MirError, match="add html"):
        report(tmp_path, "--formats", "md", "--open")
    assert not (tmp_path / "out").exists()
