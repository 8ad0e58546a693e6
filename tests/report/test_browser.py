"""Reports as a browser shows them; the demo's own is looked at where the demo is tested."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradfix.report import report
from tests.report.browser import check_page, launched, needs_browser, opened
from tests.report.records import EVIL, RECORDS, page_of

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as running:
        yield running


@pytest.mark.parametrize("kind", ["transport", "comparison"])
def test_a_page_is_drawn_sorts_and_fits(browser: Any, kind: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page_of(RECORDS[kind]()))
    check_page(browser, tmp_path / "report.html")


def test_markup_is_read_and_not_run_and_the_recipe_is_copied(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report(RECORDS["transport"](EVIL)))
    with opened(browser, tmp_path / "report.html") as (page, trouble):
        assert page.evaluate("window.hacked") is None
        assert EVIL in page.evaluate("document.body.innerText")
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("button.copy").click()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("command: transport")
        assert "window.hacked" in copied
        assert page.locator("button.copy").inner_text() == "Copied"
        assert trouble == []
