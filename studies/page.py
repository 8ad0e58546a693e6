"""``tables.json``, what ``python -m studies`` writes, and its page: a section a study, its figure and its tables."""

from collections.abc import Sequence
from typing import Any, Literal

from markupsafe import Markup

from gradfix.evaluation.intervals import interval_words
from gradfix.report.elements import Cell, Figure, Section, Table, label
from gradfix.report.elements import Part as Shown
from gradfix.report.facts import Interval, Part
from gradfix.report.numbers import points
from gradfix.report.page import Page
from gradfix.report.record import Record
from gradfix.report.sections.costs import inputs_section
from gradfix.report.sections.results import dots, half
from gradfix.report.style import ACCENT, COLOURS, DASHES, MUTED, SYMBOLS, layout
from gradfix.report.verdict import Verdict


class Finding(Part):
    """See :class:`studies.findings.Finding`."""

    claim: str
    strength: str
    cases: str


class Panel(Part):
    """See :class:`studies.figures.Panel`."""

    title: str
    series: dict[str, list[tuple[float, Interval]]]
    levels: dict[str, float]


class Curves(Part):
    """See :class:`studies.figures.Curves`."""

    kind: Literal["curves"] = "curves"
    panels: list[Panel]
    x: str
    y: str
    logarithmic: bool


class Dots(Part):
    """See :class:`studies.figures.Dots`."""

    kind: Literal["dots"] = "dots"
    values: dict[str, dict[str, Interval]]
    x: str


class StudyTable(Part):
    """See :class:`studies.cells.Table`."""

    title: str
    corner: str
    columns: list[str]
    rows: dict[str, list[Interval | None]]
    points: bool


class Study(Part):
    """A study as it is shown.

    Attributes:
        name: Its key.
        title: What it asks.
        note: What a reader must know to read its numbers.
        figure: None where nothing is measured yet.
        tables: In order.
    """

    name: str
    title: str
    note: str
    figure: Curves | Dots | None
    tables: list[StudyTable]


class TablesRecord(Record):
    """What ``python -m studies`` leaves in ``tables.json``.

    Attributes:
        format: Always the same.
        version: Of this class.
        command: The command line that makes it again.
        versions: Of the packages that the numbers depend on.
        recipe: The options.
        draws: How many support sets the means are over.
        test_samples: On how many images of each task.
        findings: Which orderings hold.
        studies: In order.
    """

    format: Literal["gradfix-studies"] = "gradfix-studies"
    version: Literal[1] = 1
    command: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    draws: int
    test_samples: int
    findings: list[Finding]
    studies: list[Study]


def tables_page(record: TablesRecord) -> Page:
    """Lay out the studies.

    Args:
        record: What ``tables.json`` holds.

    Returns:
        The page.
    """
    sections = []
    if record.findings:
        items = Markup('<ul class="findings">{}</ul>').format(Markup().join(map(_finding, record.findings)))
        sections.append(Section("findings", "What this shows", "", [items]))
    sections += [_study(study) for study in record.studies]
    made = inputs_section("studies", record.recipe, versions=record.versions)
    return Page(
        title="gradfix studies on the embedded pair",
        above="python -m studies",
        verdict=Verdict(
            "",
            "How gradient-sign masking does on a pair of models small enough to measure everything.",
            (
                f"Mean over {record.draws} draws of the support set {interval_words(record.draws)}, on "
                f"{record.test_samples} test images a task; nothing is chosen on test images.",
            ),
        ),
        tiles=[],
        sections=[*sections, *([made] if made else [])],
        foot="Made by gradfix from the numbers in tables.json; this page loads nothing from anywhere.",
    )


def _finding(finding: Finding) -> Markup:
    return Markup(
        "<li><strong>{}</strong> {}. "
        '<details><summary>every case</summary><p class="note">{}</p></details></li>'
    ).format(finding.claim, finding.strength, finding.cases)


def _study(study: Study) -> Section:
    parts: list[Shown] = []
    if study.figure is not None:
        parts.append(_dots(study.figure) if isinstance(study.figure, Dots) else _curves(study.figure))
    parts += [_table(table) for table in study.tables]
    return Section(study.name, study.title, study.note, parts)


def _table(table: StudyTable) -> Table:
    rows = [
        [Cell(name), *(_cell(cell, signed=table.points) for cell in cells)]
        for name, cells in table.rows.items()
    ]
    unit = "points" if table.points else "%"
    note = " Bold: the 95 % interval excludes 0." if table.points else ""
    return Table([table.corner, *table.columns], rows, caption=f"{table.title} ({unit}).{note}")


def _cell(interval: Interval | None, *, signed: bool) -> Cell:
    if interval is None:
        return Cell("")
    value, low = interval.value, interval.low
    width = "" if low is None else f" ± {(value - low) * 100:.1f}"
    if not signed:
        return Cell(f"{value * 100:.1f}{width}", value)
    shown = points(value) + width
    return Cell(Markup("<strong>{}</strong>").format(shown) if interval.excludes_zero else shown, value)


def _dots(figure: Dots) -> list[Figure]:
    return [
        dots(title, [(name, interval, False) for name, interval in values.items()], figure.x, unit="")
        for title, values in figure.values.items()
    ]


def _curves(figure: Curves) -> list[Figure]:
    names = list(dict.fromkeys(name for panel in figure.panels for name in panel.series))
    return [_panel(panel, figure, names) for panel in figure.panels]


def _panel(panel: Panel, figure: Curves, names: Sequence[str]) -> Figure:
    traces: list[dict[str, Any]] = []
    for name, values in panel.series.items():
        number = names.index(name)
        colour = ACCENT if number == 0 else COLOURS[number % len(COLOURS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name, 40),
                "x": [x for x, _ in values],
                "y": [interval.value for _, interval in values],
                "error_y": {
                    "type": "data",
                    "array": [half(interval.low, interval) for _, interval in values],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 3,
                },
                "line": {"color": colour, "width": 1.8},
                "marker": {"color": colour, "size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.3f}<extra></extra>",
            }
        )
    xs = sorted({x for values in panel.series.values() for x, _ in values})
    for number, (name, value) in enumerate(panel.levels.items()):
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
    ticks = (
        {"type": "log", "tickvals": xs, "ticktext": [f"{x:g}" for x in xs]}
        if figure.logarithmic and xs
        else {}
    )
    made = layout(
        height=400,
        showlegend=True,
        xaxis={"title": figure.x, **ticks},
        yaxis={"title": figure.y},
        legend={
            "orientation": "h",
            "x": 0,
            "y": -0.24,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 11},
        },
    )
    return Figure(panel.title, traces, made, "Bars: 95 % intervals over draws.")
