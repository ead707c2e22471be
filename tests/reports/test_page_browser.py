"""The page in a real headless Chromium: sorting, filtering, hovering, keyboard, themes, small screens, size."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from report_boards import board, layer

from mir_plugin.reports.board.board import (
    Board,
    BoardRow,
    Cohort,
    Correlation,
)
from mir_plugin.reports.board.correlation import correlate
from mir_plugin.reports.page.page import write_page
from mir_plugin.reports.read.benchmarks import Benchmark
from mir_plugin.reports.read.headline_table import TRAINING_LOSS
from mir_plugin.reports.read.records import Comparability

from tolerances import HANGS

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install '.[dev]')")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)",
    ),
]

HOSTILE = "</script><script>document.title='taken'</script><b onmouseover=alert(1)>"
N_ROWS, N_BENCHMARKS = 500, 30


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1300,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


def two_cohorts() -> Board:
    """Five checkpoints of cohort A in two groups, one of cohort B, one without MIR; beta lacks MME, as gamma does."""
    plain = board(names=("alpha", "beta", "gamma", "delta", HOSTILE, "other"))
    rows = []
    for place, row in enumerate(plain.rows):
        scores = {"mmstar": (39.0, 41.0, 35.0, 36.0, 30.0, 50.0)[place]}
        if row.name not in ("beta", "gamma"):
            scores["mme"] = 1500.0 + place
        cohort, group = ("B", "") if row.name == "other" else ("A", "odd" if place % 2 else "even")
        rank = 1 if row.name == "other" else row.rank
        row = dataclasses.replace(row, scores=scores, average=None, cohort=cohort, group=group, rank=rank)
        rows.append(dataclasses.replace(row, mir_interval=(row.mir - 0.1, row.mir + 0.1)))
    rows.append(BoardRow("models/scored", "scored only", scores={"mmstar": 20.0}))
    a = rows[:5]
    return board(
        rows=tuple(rows),
        cohorts=(
            Cohort("A", Comparability("exact", "s1", "p1"), 5),
            Cohort("B", Comparability("exact", "s2", "p1"), 1),
        ),
        correlations=(
            correlate("A", "mmstar", [row.mir for row in a], [row.scores["mmstar"] for row in a]),
            Correlation("A", "mme", 3, note="n = 3: too few rows"),
        ),
        warnings=("cohorts differ in samples",),
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_page(two_cohorts(), tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def by_id(page, name):
    return page.find_element("id", name)


def names(page) -> list[str]:
    """Checkpoints that the leaderboard shows, from top to bottom."""
    return page.execute_script(
        "return [...document.querySelectorAll('#leaderboard tr[data-row]')]"
        ".filter((row) => row.checkVisibility()).map((row) => row.querySelector('.name').textContent)"
    )


def heading(page, text):
    return next(b for b in page.find_elements("css selector", "#leaderboard .sort") if b.text.startswith(text))


def aria_sort(page, text):
    return heading(page, text).find_element("xpath", "..").get_attribute("aria-sort")


def chart(page, expression: str, canvas: str = "scatter"):
    return page.execute_script(f"const chart = Chart.getChart('{canvas}'); return {expression}")


def hover(page, canvas: str, dataset: int, index: int) -> None:
    x, y, width, height = chart(
        page,
        f"[chart.getDatasetMeta({dataset}).data[{index}].x, chart.getDatasetMeta({dataset}).data[{index}].y,"
        " chart.canvas.clientWidth, chart.canvas.clientHeight]",
        canvas,
    )
    element = by_id(page, canvas)
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    ActionChains(page).move_to_element_with_offset(element, round(x - width / 2), round(y - height / 2)).perform()
    # The chart follows the pointer in its next frame.
    is_there = f"chart.getActiveElements().some((one) => one.datasetIndex === {dataset} && one.index === {index})"
    WebDriverWait(page, HANGS).until(lambda _: chart(page, is_there, canvas))


def test_nothing_is_requested_but_the_page_itself(page, address):
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert requested == {address}


def test_a_click_on_a_heading_sorts_best_first_inside_each_cohort(page):
    heading(page, "MMStar").click()
    assert names(page) == ["beta", "alpha", "delta", "gamma", HOSTILE, "other", "scored only"]
    assert aria_sort(page, "MMStar") == "descending"
    heading(page, "MMStar").click()
    assert names(page) == [HOSTILE, "gamma", "delta", "alpha", "beta", "other", "scored only"]
    assert aria_sort(page, "MMStar") == "ascending"
    heading(page, "MIR").click()
    assert names(page)[:2] == ["alpha", "beta"]  # lower is better, so the lowest comes first
    assert aria_sort(page, "MMStar") is None


def test_missing_values_stay_last_in_both_directions(page):
    for _ in range(2):
        heading(page, "MME").click()
        assert set(names(page)[3:5]) == {"beta", "gamma"}


def test_headings_sort_by_keyboard(page):
    heading(page, "Checkpoint").send_keys(Keys.ENTER)
    assert names(page)[1:5] == ["alpha", "beta", "delta", "gamma"]


def test_filters_narrow_the_leaderboard_and_fade_the_points(page):
    by_id(page, "filter").send_keys("MODELS a")
    assert "gamma" in names(page)
    by_id(page, "filter").clear()
    by_id(page, "filter").send_keys("alph")
    assert names(page) == ["alpha"]
    assert by_id(page, "filter-count").text == "1 of 7 checkpoints shown."
    opaque = chart(page, "chart.data.datasets[0].pointBackgroundColor.map((c) => Number(c.match(/[\\d.]+/g)[3]) > 0.5)")
    assert opaque == [True, False, False]
    by_id(page, "filter").send_keys("zzz")
    assert names(page) == []
    by_id(page, "clear-filter").click()
    assert len(names(page)) == 7


def test_the_group_filter_and_the_text_filter_work_together(page):
    Select(by_id(page, "group-filter")).select_by_visible_text("odd")
    assert names(page) == ["beta", "delta"]
    by_id(page, "filter").send_keys("delta")
    assert names(page) == ["delta"]


def test_columns_can_be_hidden_and_shown(page):
    page.find_element("css selector", "#columns summary").click()
    box = page.find_element("xpath", "//label[contains(., 'MMStar')]/input")
    shown = len([b for b in page.find_elements("css selector", "#leaderboard .sort") if b.is_displayed()])
    box.click()
    assert len([b for b in page.find_elements("css selector", "#leaderboard .sort") if b.is_displayed()]) == shown - 1
    box.send_keys(Keys.ESCAPE)
    assert by_id(page, "columns").get_attribute("open") is None


def test_hovering_a_point_tells_its_checkpoint_and_lights_its_row(page):
    hover(page, "scatter", dataset=0, index=0)
    assert chart(page, "chart.tooltip.opacity") == 1
    assert chart(page, "chart.tooltip.title") == ["alpha"]
    assert chart(page, "chart.tooltip.body[0].lines")[:2] == ["MIR 2.750 [2.650, 2.850]", "MMStar (%) 39.0"]
    assert page.find_element("css selector", "#leaderboard tr.active .name").text == "alpha"


def test_a_click_on_a_point_marks_its_checkpoint(page):
    hover(page, "scatter", dataset=1, index=1)
    ticked = page.find_element("css selector", "tr.active input")
    before = ticked.is_selected()
    ActionChains(page).click().perform()
    # The chart answers a click in its next frame.
    WebDriverWait(page, HANGS).until(lambda _: ticked.is_selected() is not before)


def test_changing_the_score_changes_points_line_and_statistics(page):
    assert "n = 5" in by_id(page, "scatter-statistics").text
    assert chart(page, "chart.data.datasets.map((d) => d.label)") == ["even", "odd", "fit", "band", "band"]
    Select(by_id(page, "scatter-column")).select_by_visible_text("MME (points)")
    assert "n = 3: too few rows" in by_id(page, "scatter-statistics").text
    ys = chart(page, "chart.data.datasets.filter((d) => d.type === 'scatter').flatMap((d) => d.data.map((p) => p.y))")
    assert sorted(ys) == [1500, 1503, 1504]
    assert chart(page, "chart.options.scales.y.title.text") == "MME (points)"


def test_the_line_and_its_band_are_those_of_the_fit(page):
    from mir_plugin.reports.view.series import scatter, scopes

    line = scatter(scopes(two_cohorts())[0], "mmstar").line
    middle, low, high = chart(page, "chart.data.datasets.slice(2).map((d) => [d.data[0], d.data.at(-1)])")
    for end, x in enumerate((line.x_low, line.x_high)):
        assert middle[end] == pytest.approx({"x": x, "y": float(line.at(x))})
        assert low[end]["y"] == pytest.approx(float(line.at(x) - line.half_width(x)))
        assert high[end]["y"] == pytest.approx(float(line.at(x) + line.half_width(x)))


def test_a_plot_holds_one_cohort_only(page):
    Select(by_id(page, "scatter-scope")).select_by_visible_text("Cohort B (1)")
    assert chart(page, "chart.data.datasets.flatMap((d) => d.data.map((p) => p.y))") == [50]


def test_arrow_keys_speak_the_points_in_order_of_mir(page):
    canvas = by_id(page, "scatter")
    canvas.send_keys(Keys.ARROW_RIGHT)
    first = by_id(page, "scatter-spoken").get_attribute("textContent")
    canvas.send_keys(Keys.ARROW_RIGHT)
    second = by_id(page, "scatter-spoken").get_attribute("textContent")
    assert first.startswith("alpha: MIR 2.750")
    assert second.startswith("beta: MIR 3.000")
    assert chart(page, "chart.tooltip.title") == ["beta"]


def test_curves_follow_the_ticks_and_say_when_cohorts_mix(page):
    assert chart(page, "chart.data.datasets.map((d) => d.label)", "layers") == [
        "alpha",
        "beta",
        "gamma",
        "delta",
        HOSTILE,
    ]
    page.find_element("css selector", "#layers-chips button").click()
    assert chart(page, "chart.data.datasets[0].data", "layers") == [{"x": 1, "y": 20}, {"x": 2, "y": 40}]
    assert not by_id(page, "layers-note").is_displayed()
    Select(by_id(page, "layers-add")).select_by_visible_text("other")
    assert "different cohorts" in by_id(page, "layers-note").text


def test_every_layer_metric_can_be_chosen(page):
    metric = Select(by_id(page, "layers-metric"))
    for index, value in ((1, 3.0), (3, 6.0), (4, 0.25)):
        metric.select_by_index(index)
        assert chart(page, "chart.data.datasets[0].data[0].y", "layers") == value
    assert [option.text for option in metric.options][:2] == ["Distance (squared Fréchet)", "Mean term"]


def test_hovering_a_layer_lists_all_curves(page):
    hover(page, "layers", dataset=0, index=1)
    assert chart(page, "chart.tooltip.title", "layers") == ["Layer 2"]
    assert "alpha: 20" in chart(page, "chart.tooltip.body.flatMap((b) => b.lines)", "layers")


def test_the_theme_follows_the_system_and_the_button_and_is_kept(page):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    def axis():
        return chart(page, "chart.options.scales.x.title.color")

    before = axis()
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    WebDriverWait(page, HANGS).until(lambda _: axis() != before)  # the browser tells the page with its next frame
    dark, dark_axis = background(), axis()
    by_id(page, "theme").click()  # auto → light
    light = background()
    assert light != dark
    assert axis() != dark_axis
    page.refresh()
    assert background() == light
    by_id(page, "theme").click()
    by_id(page, "theme").click()
    assert background() == dark
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_hostile_names_are_shown_and_do_nothing(page):
    assert page.title == "A title"
    assert HOSTILE in names(page)
    assert page.find_elements("css selector", "b[onmouseover]") == []


def test_a_phone_scrolls_tables_not_the_page(page):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.refresh()
        WebDriverWait(page, HANGS).until(  # a chart takes its width in a later frame
            lambda _: page.execute_script("return document.documentElement.scrollWidth <= 390")
        )
        assert by_id(page, "filter").is_displayed()
        assert chart(page, "chart.width") > 250
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name(page):
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('button, select, input, canvas')].filter((e) => e.checkVisibility()"
        " && !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map((e) => e.outerHTML)"
    )
    assert unnamed == []


def test_five_hundred_checkpoints_with_thirty_scores_are_sorted_and_filtered(browser, tmp_path):
    benchmarks = tuple(Benchmark(f"b{i}", f"Bench {i}") for i in range(N_BENCHMARKS))
    rows = tuple(
        BoardRow(
            identity=f"models/{i}", name=f"model {i}", cohort="A", rank=i + 1, mir=2 + i / 500,
            scores={f"b{j}": float((i * 37 + j * 11) % 101) for j in range(N_BENCHMARKS)},
            layers=tuple(layer(k, 100.0 + k) for k in range(1, 33)),
        )
        for i in range(N_ROWS)
    )  # fmt: skip
    cohorts = (Cohort("A", Comparability("exact", "s1", "p1"), N_ROWS),)
    large = Board("large", rows=rows, benchmarks=benchmarks, cohorts=cohorts)
    browser.get(write_page(large, tmp_path / "large.html").as_uri())
    browser.execute_script("document.querySelectorAll('#leaderboard .sort')[4].click()")
    assert len(names(browser)) == N_ROWS
    browser.execute_script(
        "const filter = document.getElementById('filter'); filter.value = '49';filter.dispatchEvent(new Event('input'))"
    )
    assert set(names(browser)) == {f"model {i}" for i in range(N_ROWS) if "49" in str(i)}
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_training_runs_are_drawn_by_step_with_score_and_loss_and_read_out_by_keyboard(browser, tmp_path):
    rows = [
        dataclasses.replace(row, group="ours", step=step, identity=f"runs/a/checkpoint-{step}", mir_interval=None)
        for row, step in zip(board().rows, (300, 100, 200), strict=False)
    ]
    rows[0] = dataclasses.replace(rows[0], scores={**rows[0].scores, TRAINING_LOSS: 1.25})
    browser.get(write_page(board(rows=tuple(rows)), tmp_path / "report.html").as_uri())
    canvases = browser.find_elements("css selector", "#training-panels canvas")
    drawn = browser.execute_script(
        "return [...arguments[0]].map((canvas) => Chart.getChart(canvas).data.datasets[0].data)", canvases
    )
    assert [(point["x"], point["y"]) for point in drawn[0]] == [(r.step, r.mir) for r in (rows[1], rows[2], rows[0])]
    assert drawn[-1] == [{"x": 300, "y": 1.25}]
    canvases[-1].send_keys(Keys.ARROW_RIGHT)
    assert by_id(browser, "training-spoken").text == "Step 300, Training loss, ours: 1.25"
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
