"""The look that every figure shares, in pages, model cards and studies: colours, type and marks.

The colours of series are those of Okabe and Ito (2008), told apart with every kind of colour vision; what a colour
says is always said by a shape, a place or a word, too.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradfix.report.elements import label

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
"""plotly's names of ``MARKERS``."""
DASHES = ("dash", "dot", "dashdot")

ACCENT, WARM, GOOD = COLOURS[0], COLOURS[1], COLOURS[2]
INK, MUTED, GRID, SURFACE, NEUTRAL = "#1d2433", "#5b6472", "#e4e7ec", "#ffffff", "#f4f5f7"

DARK = {
    "#0072b2": "#5db2ea",
    "#d55e00": "#ff9152",
    "#009e73": "#3fcfa0",
    "#cc79a7": "#e9a3cb",
    "#e69f00": "#f5bb41",
    "#56b4e9": "#9bd3f5",
    "#000000": "#f2f4f8",
    "#8a8a8a": "#a0a6b1",
    INK: "#e8ebf1",
    MUTED: "#a3acba",
    GRID: "#2c3442",
    SURFACE: "#161b24",
    NEUTRAL: "#262d39",
    "#9a3d00": "#ffb68f",
    "#004c78": "#a9d8f8",
}
"""What each colour becomes in a dark page; the page's script swaps them in every figure."""

DIVERGING = ((0.0, "#9a3d00"), (0.25, WARM), (0.5, NEUTRAL), (0.75, ACCENT), (1.0, "#004c78"))
"""Below chance, chance, above chance: blue and orange differ for every kind of colour vision."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', sans-serif"


def layout(**changes: Any) -> dict[str, Any]:
    """Give the layout that all plotly figures start from.

    Args:
        **changes: Entries of plotly's layout; ``xaxis`` and ``yaxis`` are merged with the shared style of axes,
            and their titles made safe.

    Returns:
        A layout.
    """
    axis = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"color": MUTED, "size": 12},
        "title": {"font": {"color": MUTED, "size": 12}, "standoff": 10},
        "fixedrange": True,
    }
    made: dict[str, Any] = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "height": 300,
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": SURFACE,
            "bordercolor": MUTED,
            "font": {"family": FONT, "size": 13, "color": INK},
            "align": "left",
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    }
    for name, value in changes.items():
        if name.startswith(("xaxis", "yaxis")):
            title = value.get("title")
            styled = {**axis, **value}
            if isinstance(title, str):
                styled["title"] = {**axis["title"], "text": label(title)}  # type: ignore[dict-item]
            made[name] = styled
        else:
            made[name] = value
    return made


@contextmanager
def static() -> Iterator[None]:
    """Draw with matplotlib in the shared look; the same numbers give the same bytes.

    Yields:
        Nothing.
    """
    import matplotlib as mpl

    style = {
        "svg.hashsalt": "gradfix",
        "font.size": 9,
        "axes.edgecolor": "#8a8a8a",
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
    }
    with mpl.rc_context(style):
        yield


def saved(canvas: Any, *, svg: bool = False, dpi: int = 110) -> dict[str, bytes]:
    """Give the files of a matplotlib figure, without dates or versions in them.

    Args:
        canvas: The figure.
        svg: Make an SVG, too.
        dpi: Of the PNG, in dots per inch.

    Returns:
        Contents by extension.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(canvas)
    made = {"png": io.BytesIO()}
    canvas.savefig(made["png"], format="png", dpi=dpi, metadata={"Software": None})
    if svg:
        made["svg"] = io.BytesIO()
        canvas.savefig(made["svg"], format="svg", metadata={"Date": None, "Creator": None})
    return {extension: content.getvalue() for extension, content in made.items()}
