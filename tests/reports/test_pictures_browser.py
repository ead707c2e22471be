"""Pictures in a real headless Chromium: they load although the page admits nothing from elsewhere, and turn dark."""

from __future__ import annotations

import dataclasses
import io
import shutil

import PIL.Image
import pytest
from report_boards import board

from mir_plugin.reports.page.page import write_page
from mir_plugin.reports.read.records import Picture

from tolerances import HANGS

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install '.[dev]')")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and shutil.which("chromedriver")),
        reason="no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)",
    ),
]


@pytest.fixture
def page(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    file = io.BytesIO()
    PIL.Image.new("RGB", (1800, 500), "white").save(file, "PNG")
    with_picture = dataclasses.replace(board(), pictures=(Picture("alpha", "its tokens", file.getvalue(), "x.png"),))
    driver.get(write_page(with_picture, tmp_path / "report.html").as_uri())
    yield driver
    driver.quit()


def test_a_picture_is_shown_in_light_and_dark_and_fits_a_phone(page):
    image = page.find_element("css selector", ".pictures img")
    page.execute_script("arguments[0].scrollIntoView()", image)
    assert page.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) == 1800
    filters = []
    for theme in ("light", "dark"):
        page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        filters.append(image.value_of_css_property("filter"))
    assert filters == ["none", "invert(0.9) hue-rotate(180deg)"]
    page.set_window_size(500, 800)
    # The charts take the new width in a later frame: a narrowed page fits soon, not in the same call.
    WebDriverWait(page, HANGS).until(
        lambda _: page.execute_script("return innerWidth <= 500 && document.documentElement.scrollWidth <= innerWidth")
    )
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
