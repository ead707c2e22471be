"""The page as text: what it holds, that nothing from outside can act in it, and that it needs no network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_boards import board

from mir_plugin.reports.board.board import (
    AVERAGE,
    Board,
    Coefficient,
    Cohort,
    Correlation,
)
from mir_plugin.reports.build import build_paper_report
from mir_plugin.reports.page.charts import as_script_data
from mir_plugin.reports.page.page import render_page
from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.reports.read.records import Comparability
from mir_plugin.reports.view.highlights import highlights

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028\"'&$"


class Page(HTMLParser):
    """Elements with their attributes, script bodies, and the cells of the leaderboard's rows."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "wbr":  # a place to break a line, wherever a path has one
            return
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts[-1] += data
        elif self.rows and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()

    def row_of(self, name: str) -> dict[str, str]:
        headings = next(row for row in self.rows if "Checkpoint" in row)
        return dict(zip(headings, next(row for row in self.rows if row[2:3] == [name]), strict=True))


def chart_data_of(page: Page) -> dict:
    return json.loads(page.scripts[0])


PLAIN_TAGS = [tag for tag, _ in Page(render_page(board())).elements]


def test_the_leaderboard_shows_every_value_and_leaves_missing_ones_empty():
    page = Page(render_page(board()))
    alpha, gamma = page.row_of("alpha"), page.row_of("gamma")
    assert (alpha["Rank"], alpha["MIR"], alpha["MMStar"], alpha["MME"]) == ("1", "2.750", "39.0", "1510.0")
    assert (gamma["MME"], gamma["Average"]) == ("", "")


def test_the_charts_have_the_exact_numbers():
    data = chart_data_of(Page(render_page(board())))
    assert [row["mir"] for row in data["rows"]] == [2.75, 3.0, 3.25]
    assert data["rows"][2]["scores"] == {"mmstar": 37.0}
    assert data["rows"][1]["layers"][0] == [20.0, 40.0]
    assert [scope["rows"] for scope in data["scopes"]] == [[0, 1, 2]]
    assert data["scopes"][0]["lines"]["mmstar"]["slope"] == pytest.approx(-4)
    assert "mme" not in data["scopes"][0]["lines"]  # two rows have it


def test_warnings_stand_before_every_number():
    text = render_page(board(warnings=("do not compare these",)))
    assert 0 < text.index("do not compare these") < text.index("2.750")
    assert text.index("1 warning") < text.index("2.750")  # the count of problems


def test_cohorts_are_separate_sections_and_never_share_a_plot():
    rows = [dataclasses.replace(row, cohort="B" if row.name == "gamma" else "A") for row in board().rows]
    cohorts = (Cohort("A", Comparability("exact", "s1", "p1"), 2), Cohort("B", Comparability("exact", "s2", "p1"), 1))
    text = render_page(board(rows=tuple(rows), cohorts=cohorts))
    sections = re.findall(r'class="section"><th[^>]*><span>(.*?)</span>', text)
    assert [section.partition(",")[0] for section in sections] == ["Cohort A: 2 checkpoints", "Cohort B: 1 checkpoint"]
    assert [scope["rows"] for scope in chart_data_of(Page(text))["scopes"]] == [[0, 1], [2]]


def test_the_numbers_above_are_those_of_the_average_or_else_of_the_main_score():
    found = [(one.label, one.value, one.detail) for one in highlights(board())]
    assert found == [("Lowest MIR", "2.750", "alpha"), ("Highest average", "57.3", "alpha")]
    rows = tuple(dataclasses.replace(row, average=None) for row in board().rows)
    related = Correlation("A", "mmstar", 3, spearman=Coefficient(-0.5))
    found = [(one.label, one.value, one.detail) for one in highlights(board(rows=rows, correlations=(related,)))]
    assert found[1:] == [
        ("Highest MMStar", "39.0", "alpha"),
        ("Spearman ρ, MIR and MMStar", "−0.50", "n = 3"),
    ]
    loss = Benchmark("loss", "Loss", higher_is_better=False, decimals=3)
    rows = tuple(dataclasses.replace(row, scores={"loss": row.mir / 2}) for row in rows)
    found = [(one.label, one.value) for one in highlights(board(rows=rows, benchmarks=(loss,), correlations=()))]
    assert found[1:] == [("Lowest Loss", "1.375")]


def test_the_correlations_have_a_column_of_notes_only_where_there_is_one():
    noted, plain = (Page(render_page(board(correlations=board().correlations[first:]))).rows for first in (0, 1))
    widths = [[len(row) for row in rows if row[:1] in (["MIR against"], ["MMStar"])] for rows in (noted, plain)]
    assert widths == [[6, 6], [5, 5]]


def test_fingerprints_stand_in_the_footnote_only():
    fingerprint = "0123456789ab" + "c" * 52
    cohorts = (Cohort("A", Comparability("exact", fingerprint, "p1"), 3),)
    body, footnote = render_page(board(cohorts=cohorts)).split("<footer")
    assert "Cohort A: 3 checkpoints, estimator exact" in body
    assert fingerprint not in body
    assert fingerprint in footnote


def test_a_partial_score_is_marked():
    entry = dataclasses.replace(board().entries[0], identity="models/alpha", complete=False)
    assert Page(render_page(board(entries=(entry,)))).row_of("alpha")["MMStar"] == "39.0*"


def test_a_hostile_name_stays_text():
    hostile = Page(render_page(board(names=(HOSTILE, "beta", "gamma"))))
    assert [tag for tag, _ in hostile.elements] == PLAIN_TAGS
    assert chart_data_of(hostile)["rows"][0]["name"] == HOSTILE
    assert hostile.rows[2][2] == HOSTILE.strip()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30) | st.sampled_from(["<!--", "</SCRIPT >", "{{ 7*7 }}", "\ud800", "\x00", "]]>", "`${1}`"]))
def test_no_name_changes_the_structure(name):
    named = render_page(board(names=(f"a{name}", "b", "c")))
    assert [tag for tag, _ in Page(named).elements] == PLAIN_TAGS
    named.encode("utf-8")


def test_script_data_cannot_leave_its_element():
    text = as_script_data({"a": "</script><!--\u2028\u2029&"})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028\u2029&"}


def test_nothing_is_loaded_from_elsewhere():
    page = Page(render_page(board()))
    loading = [
        (tag, attrs) for tag, attrs in page.elements if {"src", "srcset", "action", "data", "poster"} & set(attrs)
    ]
    assert loading == []
    assert all(attrs["href"].startswith("#") for _, attrs in page.elements if "href" in attrs)
    assert "sourceMappingURL" not in render_page(board())
    assert not re.search(r"@import|url\(", render_page(board()).partition("</style>")[0])


def test_the_policy_admits_exactly_the_scripts_of_the_page():
    page = Page(render_page(board()))
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_library_comes_with_its_licences():
    text = render_page(board())
    assert "Chart.js v4" in text
    assert text.count("Permission is hereby granted, free of charge") == 2


def test_the_same_board_gives_the_same_page():
    assert render_page(board()) == render_page(board())


def test_an_empty_board_is_a_page_too():
    text = render_page(Board("nothing"))
    assert "0 checkpoints" in text
    assert chart_data_of(Page(text))["rows"] == []


def test_the_paper_report_points_out_the_two_values_of_one_model(tmp_path):
    files = build_paper_report(tmp_path, ["html"])
    text = files.paths["html"].read_text(encoding="utf-8")
    assert "3.182" in text.partition("</ul>")[0]
    assert "3.374" in text.partition("</ul>")[0]
    assert chart_data_of(Page(text))["mainColumn"] == AVERAGE


def test_what_a_phone_hides_is_hidden_with_its_heading():
    rows = tuple(dataclasses.replace(row, run="a", step=place) for place, row in enumerate(board().rows))
    page = render_page(board(rows=rows))
    table = page[page.index('<table id="leaderboard"') : page.index('id="no-match"')]
    headings, *bodies = table.split("</thead>")
    hidden = headings.count(" minor")
    assert hidden == 4  # rank, run, step, published MIR
    assert "".join(bodies).count(" minor") == hidden * len(rows)
