"""What a page is made of: sections of prose, figures, tables and lists. Sections know nothing of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


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

    shown: str | Markup
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
    lead: str | Markup = ""
    parts: Sequence["Part"] = field(default_factory=list)


Part = Figure | Table | Markup | Sequence[Figure]


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
