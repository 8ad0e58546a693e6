"""One file that opens anywhere: style, script, plotly.js and figures are in it, and it asks nobody for anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gradfix.report.elements import Section, figures_of, sections_html
from gradfix.report.markup import Content, Html, embedded_json, joined, tag
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


# Nothing may be loaded from anywhere; a page that can't ask can't leak what it shows. Figures need inline styles.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "font-src data:"
)

_PLOTLY_HERE = Html("<!--plotly.js-->")  # no text of a page can say it: theirs is escaped


def page_html(page: Page) -> str:
    """Write the page.

    Args:
        page: What it shows.

    Returns:
        A whole HTML document; the same page always gives the same text.
    """
    script = _asset("page.js").replace("/*DARK*/{}", embedded_json(DARK))
    plotly = any(figures_of(section) for section in page.sections)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", page.title),
        tag("style", Html(_asset("page.css"))),
    )
    scripts = joined([tag("script", _PLOTLY_HERE) if plotly else None, tag("script", Html(script))], "\n")
    document = tag("html", head, "\n", tag("body", _body(page), "\n", scripts), lang="en")
    # Last, and once: every element around it would be another copy of some megabytes.
    before, mark, after = document.partition(_PLOTLY_HERE)
    return "".join(["<!doctype html>\n", before, plotly_js() if mark else "", after, "\n"])


def _body(page: Page) -> Html:
    verdict = page.verdict
    hero = tag(
        "header",
        tag("p", page.above, class_="above"),
        tag("h1", verdict.headline),
        tag("p", BADGES.get(verdict.state, verdict.state), class_=f"badge {verdict.state}")
        if verdict.state
        else None,
        *(tag("p", sentence, class_="beside") for sentence in verdict.beside),
        tag(
            "dl",
            *(
                tag(
                    "div",
                    tag("dt", tile.name),
                    tag(
                        "dd",
                        tag("span", tile.value, class_="value"),
                        tag("span", tile.detail, class_="detail"),
                    ),
                )
                for tile in page.tiles
            ),
            class_="tiles",
        )
        if page.tiles
        else None,
        class_="hero",
    )
    contents = tag(
        "nav",
        *(tag("a", section.title, href=f"#{section.name}") for section in page.sections),
        aria_label="Sections",
    )
    foot = tag("footer", tag("p", page.foot)) if page.foot else None
    return joined(
        [hero, contents if len(page.sections) > 2 else None, tag("main", sections_html(page.sections)), foot]
    )


@cache
def _asset(name: str) -> str:
    return files("gradfix.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """Give plotly.js as it stands in the page.

    Returns:
        The script, with nothing in it that could end the element early.
    """
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script").replace("<!--", "<\\!--")
