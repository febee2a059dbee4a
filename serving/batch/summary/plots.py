"""Charts of a table's figures: numbers and a theme in, a matplotlib Figure out, nothing shown and no global state.

Colours are those of Okabe and Ito, which the colour-blind can tell apart. A chart is drawn twice, for light pages and
for dark ones.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from serving.batch.summary.figures import Confidence, Quantile, Typicality
from serving.batch.summary.occupancy import ClassOccupancy

WIDTH = 5.0  # inches: as wide as the text on a phone, so that letters need not shrink
SIDES = {"0.01": "right", "0.5": "center", "0.99": "left"}  # quantiles with a line, and where their names go
ROOM = 0.35  # of the width of the axes, for three names


@dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    ink: str
    grid: str
    paper: str
    bar: str
    mark: str
    parts: tuple[str, ...]


LIGHT = Theme(
    "#222222", "#E6E6E6", "#FFFFFF", "#0072B2", "#D55E00", ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
)
DARK = Theme(
    "#E4E6E8", "#3A3F45", "#16191D", "#56B4E9", "#E69F00", ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2")
)

Chart = Callable[[Theme], Figure]


def as_uri(chart: Chart, theme: Theme) -> tuple[str, int, int]:
    """A chart as an SVG image in a data URI, and its width and height in CSS pixels."""
    figure, stream = chart(theme), BytesIO()
    with rc_context({"svg.hashsalt": "discriminant"}):  # the same figures make the same bytes
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}", width, height


def confidence_chart(confidence: Confidence) -> Chart:
    """Images per bin of probability, on a logarithmic scale."""

    def draw(theme: Theme) -> Figure:
        figure, ax = _axes(2.9, theme)
        edges = np.array(confidence.edges)
        ax.bar(
            edges[:-1], confidence.counts, np.diff(edges), align="edge", color=theme.bar, edgecolor=theme.paper, lw=0.4
        )
        ax.set(xlim=(0, 1), yscale="log", ylim=(0.7, 2 * max(confidence.counts)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set_xlabel("probability of the likeliest class")
        ax.set_ylabel("images (log scale)")
        return figure

    return draw


def density_chart(density: Typicality) -> Chart:
    """Images per bin of log-density, and quantiles of the test split as lines."""

    def draw(theme: Theme) -> Figure:
        figure, ax = _axes(3.1, theme)
        edges = np.array(density.histogram.edges)
        ax.bar(edges[:-1], density.histogram.counts, np.diff(edges), align="edge", color=theme.bar, lw=0)
        _mark(ax, density.quantiles, float(edges[-1] - edges[0]), theme)
        ax.set_xlim(edges[0], edges[-1])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("log-density, nats")
        ax.set_ylabel("images")
        return figure

    return draw


def occupancy_chart(classes: Sequence[ClassOccupancy]) -> Chart:
    """Two bars a class, each split into its components: above as on the test split, below as in the table."""

    def draw(theme: Theme) -> Figure:
        figure, ax = _axes(0.9 + 0.42 * len(classes), theme)
        for row, one in enumerate(classes):
            _split_bar(ax, row - 0.2, one.expected, theme, faint=True)
            _split_bar(ax, row + 0.2, one.found or [], theme, faint=False)
        ax.set_yticks(range(len(classes)), [shortened(one.label) for one in classes])
        ax.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("share of the class's images, a colour a component")
        return figure

    return draw


def shortened(name: str, most: int = 14) -> str:
    """A class name that fits beside an axis; a dollar sign is no mathematics."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.replace("$", r"\$")


def _mark(ax: Axes, quantiles: Sequence[Quantile], width: float, theme: Theme) -> None:
    """Lines at three quantiles; where there is no room for three names, the outer two have theirs to the sides."""
    marked = [quantile for quantile in quantiles if str(quantile.share) in SIDES]
    close = marked[-1].log_density - marked[0].log_density < ROOM * width
    for quantile in marked:
        ax.axvline(quantile.log_density, color=theme.mark, linestyle="--", linewidth=1.2)
        side = SIDES[str(quantile.share)] if close else "center"
        if close and side == "center":
            continue
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "bottom"}
        text = f"{100 * quantile.share:g} %"
        ax.annotate(text, (quantile.log_density, 1.01), color=theme.mark, fontsize=9, **place)


def _split_bar(ax: Axes, row: float, shares: Sequence[float], theme: Theme, *, faint: bool) -> None:
    left = 0.0
    for component, share in enumerate(shares):
        colour = theme.parts[component % len(theme.parts)]
        ax.barh(row, share, 0.36, left, color=colour, alpha=0.45 if faint else 1, edgecolor=theme.paper, lw=0.6)
        if share > 0.07:
            ink = theme.ink if faint else "#111111" if theme is DARK or component % 5 == 1 else "#FFFFFF"
            ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color=ink)
        left += share


def _axes(height: float, theme: Theme) -> tuple[Figure, Axes]:
    """A figure of WIDTH x height inches with one plain pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["bottom", "left"]].set_color(theme.ink)
    ax.grid(color=theme.grid, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=theme.ink)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=theme.ink, fontsize=10)
    return figure, ax
