"""What a page is made of: sections of prose, figures, tables and lists. Sections know nothing of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from gradfix.report.markup import Content, Html, embedded_json, joined, tag


@dataclass(frozen=True)
class Figure:
    """An interactive figure.

    Attributes:
        title: What is to be seen, in words; it stands above, and a reader of the title alone learns it.
        data: plotly traces; text in them is made by :func:`label`.
        layout: plotly's layout, of :func:`gradfix.report.style.layout`.
        note: How to read it, below.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: What is read.
        order: What the column sorts by; the text where None.
    """

    shown: Content
    order: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts by a click on a header.

    Attributes:
        columns: Headers.
        rows: Cells by row.
        strong: Numbers of the rows that are set off.
        caption: What it rests on, below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: Sequence[int] = ()
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        name: Of its anchor.
        title: The heading.
        lead: What the section shows, in a sentence or two.
        parts: Figures, tables and markup, in order; several figures in a list stand side by side.
    """

    name: str
    title: str
    lead: Content = ""
    parts: Sequence["Part"] = field(default_factory=list)


Part = Figure | Table | Html | Sequence[Figure]


def label(content: str, limit: int = 80) -> str:
    """Make text from a file safe in a figure: plotly reads a few tags in any text, and nothing here may be one.

    Args:
        content: The text.
        limit: Characters after which it is cut.

    Returns:
        The text with ``&``, ``<`` and ``>`` written as entities.
    """
    short = content if len(content) <= limit else content[: limit - 1] + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figures_of(section: Section) -> list[Figure]:
    """List the figures of a section.

    Args:
        section: The section.

    Returns:
        In order, those side by side included.
    """
    parts = [
        part if isinstance(part, Sequence) and not isinstance(part, str) else [part] for part in section.parts
    ]
    return [figure for some in parts for figure in some if isinstance(figure, Figure)]


def sections_html(sections: Sequence[Section]) -> Html:
    """Write sections.

    Args:
        sections: In order.

    Returns:
        Markup; figures as JSON, which the page's script draws.
    """
    numbers = count(1)

    def part_html(part: Part) -> Html:
        if isinstance(part, Html):
            return part
        if isinstance(part, Figure):
            return _figure(part, next(numbers))
        if isinstance(part, Table):
            return _table(part)
        return tag("div", *(_figure(figure, next(numbers)) for figure in part), class_="side-by-side")

    return joined(
        tag(
            "section",
            tag("h2", section.title),
            tag("p", section.lead, class_="lead") if section.lead else None,
            *(part_html(part) for part in section.parts),
            id=section.name,
        )
        for section in sections
    )


def _figure(figure: Figure, number: int) -> Html:
    height = figure.layout.get("height", 300)
    return tag(
        "figure",
        tag("figcaption", figure.title),
        tag(
            "div",
            class_="plot",
            id=f"figure-{number}",
            role="img",
            aria_label=figure.title,
            style=f"height:{height}px",
        ),
        tag(
            "script",
            embedded_json({"data": figure.data, "layout": figure.layout}),
            type="application/json",
            data_figure=f"figure-{number}",
        ),
        tag("p", figure.note, class_="note") if figure.note else None,
    )


def _table(table: Table) -> Html:
    head = tag(
        "tr",
        *(
            tag("th", tag("button", column, type="button"), scope="col", aria_sort="none")
            for column in table.columns
        ),
    )
    rows = (
        tag(
            "tr",
            *(
                tag(
                    "td",
                    cell.shown,
                    data_order=None if cell.order is None else repr(float(cell.order)),
                    class_=None if cell.order is None else "number",
                )
                for cell in row
            ),
            class_="strong" if number in table.strong else None,
        )
        for number, row in enumerate(table.rows)
    )
    return tag(
        "div",
        tag("table", tag("thead", head), tag("tbody", *rows), class_="sortable"),
        tag("p", table.caption, class_="note") if table.caption else None,
        class_="table",
    )
