"""How results show themselves: a few lines where Python prints them, a small table in a notebook."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

MOST_LETTERS = 160
"""Of a fact on its line; what is longer ends in an ellipsis where it is printed, and is whole in a notebook."""


@dataclass(frozen=True)
class Summary:
    """What a result says of itself.

    Attributes:
        title: What it is.
        facts: Names and what is said of each; empty ones are left out.
        columns: Of a table, where there is one; the first is of names, the others of numbers.
        rows: Its cells.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def text(self) -> str:
        """Write it in lines.

        Returns:
            Lines, of which the first is the title.
        """
        lines = [self.title, *(f"  {name}: {_short(fact)}" for name, fact in self.facts if fact)]
        table = [self.columns, *self.rows] if self.columns else []
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        for row in table:
            first, *others = (
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(["", first, *others]).rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """Write it for a notebook.

        Returns:
            HTML without scripts or styles of a page, everything from files escaped.
        """
        facts = [
            Markup("<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>").format(
                name, fact
            )
            for name, fact in self.facts
            if fact
        ]
        head = Markup("").join(Markup("<th>{}</th>").format(name) for name in self.columns)
        body = [
            Markup("<tr><td style='text-align:left'>{}</td>{}</tr>").format(
                row[0], Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
            )
            for row in self.rows
        ]
        parts = [Markup("<p><strong>{}</strong></p>").format(self.title)]
        if facts:
            parts.append(Markup("<table>") + Markup("").join(facts) + Markup("</table>"))
        if body:
            parts.append(
                Markup("<table><tr>") + head + Markup("</tr>") + Markup("").join(body) + Markup("</table>")
            )
        return str(Markup("").join(parts))


class Summarised(ABC):
    """A result that shows its summary where Python would print every number it holds."""

    @abstractmethod
    def summary(self) -> Summary:
        """Say in a few lines what it is."""

    def __repr__(self) -> str:
        return self.summary().text()

    def _repr_html_(self) -> str:
        return self.summary().html()


def _short(fact: str) -> str:
    fact = " ".join(fact.split())
    return fact if len(fact) <= MOST_LETTERS else fact[: MOST_LETTERS - 1] + "…"
