"""A real browser without a network, for tests of pages."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = os.environ.get("GRADFIX_SCREENSHOTS")
"""Folder where screenshots are kept for people, if one is given."""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="no browser: `apt-get install chromium` and `pip install playwright`, as .ci/run does",
)


@contextmanager
def launched() -> Iterator[Any]:
    """StartingPoint the browser; one serves a whole module of tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1100, scheme: str = "light"
) -> Iterator[tuple[Any, list[str]]]:
    """Open a page with the network off; yields it, and what went wrong in it so far."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        trouble: list[str] = []

        def asked(request: Any) -> None:
            if not request.url.startswith(("file:", "data:")):
                trouble.append(f"asked for {request.url}")

        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", asked)
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        yield page, trouble
    finally:
        context.close()


def check_page(browser: Any, path: Path, screenshots: str | None = None) -> None:
    """Open a page as people do, wide and narrow, light and dark, and look at everything a person would."""
    with opened(browser, path) as (page, trouble):
        drawn = page.evaluate(DRAWN)
        assert drawn, "no figures"
        assert all(marks > 0 and width > 200 and height > 100 for marks, width, height in drawn), drawn
        assert page.evaluate(LOW_CONTRAST) == []
        _sorts(page)
        assert page.evaluate(
            "document.images.length === [...document.images].filter((i) => i.naturalWidth).length"
        )
        assert trouble == []
        _keep(page, screenshots and f"{screenshots}-light.png", 1400)
    with opened(browser, path, width=390, scheme="dark") as (page, trouble):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(246, 247, 249)"
        assert trouble == []
        _keep(page, screenshots and f"{screenshots}-dark-phone.png", 1500)
        # Changing the scheme redraws the figures: their text must be readable again.
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(300)
        assert page.evaluate(LOW_CONTRAST) == []


def _keep(page: Any, name: str | None, height: int) -> None:
    if SCREENSHOTS and name:
        folder = Path(SCREENSHOTS)
        folder.mkdir(parents=True, exist_ok=True)
        width = page.viewport_size["width"]
        page.screenshot(
            path=folder / name, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height}
        )


def _sorts(page: Any) -> None:
    """Click a header of numbers twice: largest first, then smallest first."""
    table = page.locator("table.sortable").first
    number = page.evaluate(NUMBERS)
    column = table.locator("th button").nth(number)
    seen = []
    for _ in range(2):
        column.click()
        seen.append(page.evaluate(COLUMN, number))
    assert seen[0] == sorted(seen[0], reverse=True)
    assert seen[1] == sorted(seen[1])
    assert len(set(seen[0])) > 1
    assert table.locator("th").nth(number).get_attribute("aria-sort") == "ascending"


NUMBERS = """[...document.querySelector('table.sortable').tHead.rows[0].cells].findIndex((_, column) => {
  const rows = [...document.querySelector('table.sortable').tBodies[0].rows];
  const values = rows.map((row) => row.cells[column].dataset.order);
  return values.every((value) => value !== undefined) && new Set(values).size > 2;
})"""
"""The first column of different numbers."""

COLUMN = """(column) => [...document.querySelector('table.sortable').tBodies[0].rows]
  .map((row) => Number(row.cells[column].dataset.order))"""

DRAWN = """[...document.querySelectorAll('.plot')].map((plot) => {
  const box = (plot.querySelector('svg.main-svg') || plot).getBoundingClientRect();
  return [plot.querySelectorAll('.trace, .hm image, .heatmap-label').length, box.width, box.height];
})"""
"""Marks, width and height of each figure."""

OUTSIDE = """[...document.querySelectorAll('main *, header *')].filter((element) =>
  !element.closest('.table, pre, svg, .svg-container') && element.getBoundingClientRect().right > innerWidth + 1
).map((element) => element.outerHTML.slice(0, 120))"""
"""Elements that stick out of the window, those in boxes that scroll by themselves left out."""

LOW_CONTRAST = """(() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      const rgb = parse(colour);
      if (colour.startsWith('rgb') && rgb.length === 3) return rgb;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = 'h1, h2, p, dt, dd span, td, th button, li, figcaption, code, .xtick text, .ytick text, .legendtext';
  for (const element of document.querySelectorAll(texts)) {
    if (!element.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element.closest('svg') ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([element.textContent.slice(0, 40), ratio]);
  }
  return found;
})()"""
"""Texts with less contrast than WCAG's 4.5 to 1 asks."""
