"""The page of ``python -m studies``: a section a study, its figure and its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.evaluation.intervals import interval_words
from gradfix.report.elements import Cell, Figure, Part, Section, Table, label
from gradfix.report.markup import Html, tag
from gradfix.report.numbers import points
from gradfix.report.page import Page
from gradfix.report.sections.costs import inputs_section
from gradfix.report.sections.results import dots
from gradfix.report.style import ACCENT, COLOURS, DASHES, MUTED, SYMBOLS, layout
from gradfix.report.verdict import Verdict, excludes_zero


def tables_page(record: Mapping[str, Any]) -> Page:
    """Lay out the studies.

    Args:
        record: What ``tables.json`` holds.

    Returns:
        The page.
    """
    findings = [str(line) for line in record.get("findings") or []]
    sections = []
    if findings:
        items = tag("ul", *map(_finding, findings), class_="findings")
        sections.append(Section("findings", "What this shows", "", [items]))
    sections += [_study(study) for study in record.get("studies") or []]
    given = {key: record.get(key) for key in ("recipe", "versions") if record.get(key)}
    made = inputs_section({**given, "command": "studies"})
    draws, test = record.get("draws"), record.get("test_samples")
    return Page(
        title="gradfix studies on the embedded pair",
        above="python -m studies",
        verdict=Verdict(
            "",
            "How gradient-sign masking does on a pair of models small enough to measure everything.",
            (
                f"Mean over {draws} draws of the support set {interval_words(draws)}, on {test} test images a "
                "task; nothing is chosen on test images.",
            )
            if draws and test
            else (),
        ),
        tiles=[],
        sections=[*sections, *([made] if made else [])],
        foot="Made by gradfix from the numbers in tables.json; this page loads nothing from anywhere.",
    )


def _finding(line: str) -> Html:
    """A finding is written in Markdown: its claim in bold, then every case it rests on."""
    claim, bold, cases = line.removeprefix("- **").partition("**")
    if not bold:
        return tag("li", line)
    strength, stop, values = cases.strip().partition(". ")
    return tag(
        "li",
        tag("strong", claim),
        f" {strength}{stop}",
        tag("details", tag("summary", "every case"), tag("p", values, class_="note")) if values else None,
    )


def _study(study: Mapping[str, Any]) -> Section:
    parts: list[Part] = []
    figure = study.get("figure")
    if figure:
        parts.append(_dots(figure) if figure["kind"] == "dots" else _curves(figure))
    parts += [_table(table) for table in study.get("tables") or []]
    return Section(str(study["name"]), str(study["title"]), str(study.get("note") or ""), parts)


def _table(table: Mapping[str, Any]) -> Table:
    rows = [
        [Cell(name), *(_cell(cell, signed=bool(table.get("points"))) for cell in cells)]
        for name, cells in table["rows"].items()
    ]
    unit = "points" if table.get("points") else "%"
    note = " Bold: the 95 % interval excludes 0." if table.get("points") else ""
    return Table(
        [str(table["corner"]), *map(str, table["columns"])], rows, caption=f"{table['title']} ({unit}).{note}"
    )


def _cell(interval: Mapping[str, Any] | None, *, signed: bool) -> Cell:
    if interval is None:
        return Cell("")
    value, low = interval["value"], interval.get("low")
    half = "" if low is None else f" ± {(value - low) * 100:.1f}"
    if not signed:
        return Cell(f"{value * 100:.1f}{half}", value)
    shown = points(value) + half
    return Cell(tag("strong", shown) if excludes_zero(interval) else shown, value)


def _dots(figure: Mapping[str, Any]) -> list[Figure]:
    return [
        dots(
            str(title),
            [(name, interval, False) for name, interval in values.items()],
            str(figure["x"]),
            unit="",
        )
        for title, values in figure["values"].items()
    ]


def _curves(figure: Mapping[str, Any]) -> list[Figure]:
    names = list(dict.fromkeys(name for panel in figure["panels"] for name in panel["series"]))
    return [_panel(panel, figure, names) for panel in figure["panels"]]


def _panel(panel: Mapping[str, Any], figure: Mapping[str, Any], names: Sequence[str]) -> Figure:
    traces: list[dict[str, Any]] = []
    for name, values in panel["series"].items():
        number = names.index(name)
        colour = ACCENT if number == 0 else COLOURS[number % len(COLOURS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name, 40),
                "x": [x for x, _ in values],
                "y": [interval["value"] for _, interval in values],
                "error_y": {
                    "type": "data",
                    "array": [
                        0 if interval.get("low") is None else interval["value"] - interval["low"]
                        for _, interval in values
                    ],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 3,
                },
                "line": {"color": colour, "width": 1.8},
                "marker": {"color": colour, "size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.3f}<extra></extra>",
            }
        )
    xs = sorted({x for values in panel["series"].values() for x, _ in values})
    for number, (name, value) in enumerate(panel.get("levels", {}).items()):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label(name, 40),
                "x": [xs[0], xs[-1]] if xs else [],
                "y": [value, value],
                "line": {"color": MUTED, "width": 1.4, "dash": DASHES[number % len(DASHES)]},
                "hovertemplate": "%{fullData.name}: %{y:.3f}<extra></extra>",
            }
        )
    logarithmic = bool(figure.get("logarithmic"))
    ticks = {"type": "log", "tickvals": xs, "ticktext": [f"{x:g}" for x in xs]} if logarithmic and xs else {}
    made = layout(
        height=400,
        showlegend=True,
        xaxis={"title": str(figure["x"]), **ticks},
        yaxis={"title": str(figure["y"])},
        legend={
            "orientation": "h",
            "x": 0,
            "y": -0.24,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 11},
        },
    )
    return Figure(str(panel["title"]), traces, made, "Bars: 95 % intervals over draws.")
