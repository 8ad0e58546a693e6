"""One file that opens anywhere: style, script, plotly.js and figures are in it, and it asks nobody for anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from gradfix.report.elements import Section
from gradfix.report.markup import Content, embedded_json, render
from gradfix.report.style import DARK
from gradfix.report.verdict import BADGES, Verdict


@dataclass(frozen=True)
class Tile:
    """A number beside the headline.

    Attributes:
        name: What it is.
        value: The number with its unit.
        detail: A few words below.
    """

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """Everything a page shows.

    Attributes:
        title: Of the browser's tab.
        above: What it is of, above the headline.
        verdict: The headline and what stands beside it.
        tiles: Numbers beside it.
        sections: In order.
        foot: The last line.
    """

    title: str
    above: Content
    verdict: Verdict
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    foot: str = ""


def page_html(page: Page) -> str:
    """Write the page.

    Args:
        page: What it shows.

    Returns:
        A whole HTML document; the same page always gives the same text.
    """
    shown = render(
        "page.html",
        page=page,
        badge=BADGES.get(page.verdict.state, page.verdict.state),
        style=_asset("page.css"),
        script=Markup(_asset("page.js").replace("/*DARK*/{}", embedded_json(DARK))),
        plotly=plotly_js,
    )
    return str(shown)  # as markup, whoever cut or joined it would escape


@cache
def _asset(name: str) -> Markup:
    return Markup(files("gradfix.report").joinpath("assets", name).read_text(encoding="utf-8"))


@cache
def plotly_js() -> Markup:
    """Give plotly.js as it stands in the page.

    Returns:
        The script, with nothing in it that could end the element early.
    """
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--"))
