"""The curves of growth as one picture: a panel a curve, its cost against the first point, and how the work grew.

write(load_results()["growth"])      # docs/plots/growth-curves.svg
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.figures import BLUE, INK, RED, new_figure, plain, save_svg

PLOT = Path("docs/plots/growth-curves.svg")
COLUMNS = 3
PANEL = (3.3, 2.7)  # inches


def write(records: Mapping[str, dict[str, Any]], file: Path = PLOT) -> Path:
    """Draw the curves of all dimensions; the same records make the same bytes."""
    panels = [(name, curve) for name, record in records.items() for curve in record["curves"]]
    rows = -(-len(panels) // COLUMNS)
    figure, grid = new_figure(COLUMNS * PANEL[0], rows * PANEL[1] + 0.3, rows, COLUMNS)
    axes = list(grid.flat)
    for ax, (name, curve) in zip(axes, panels, strict=False):
        _panel(ax, name, curve)
    for ax in axes[len(panels) :]:
        ax.remove()
    _legend(figure, axes[0])
    return save_svg(figure, file)


def _panel(ax: Any, name: str, curve: dict[str, Any]) -> None:
    points = curve["points"]
    at = [point["x"] for point in points]
    ax.plot(at, [point["work_ratio"] for point in points], "--", color=INK, linewidth=1.2, label="work")
    ax.plot(at, [point["ratio"] for point in points], "-o", color=BLUE, markersize=4, label="cost")
    bent = [point for point in points if point["bends_from"] is not None]
    ax.plot(
        [point["x"] for point in bent],
        [point["ratio"] for point in bent],
        "s",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=RED,
        markeredgewidth=1.6,
        label="bends",
    )
    cost = f"1 / ({curve['unit']})" if curve["is_rate"] else curve["unit"]
    title = f"{name}: {curve['name']}\ncost: {cost}\nwork: {curve['work']}"
    ax.set_title(title, fontsize=8.5, color=INK, loc="left", linespacing=1.3)
    ax.set_xlabel(curve["x"], fontsize=9)
    ax.set_ylabel("times the first", fontsize=9)
    _scales(ax, at, [point[key] for point in points for key in ("ratio", "work_ratio")])
    plain(ax)


def _scales(ax: Any, at: list[float], ratios: list[float]) -> None:
    """Logarithmic axes whose ticks are the points themselves, and plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(at, [f"{x:,g}" for x in at])
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = min(ratios), max(ratios)
    ax.set_ylim(min(0.5, low / 1.3), max(2.0, high * 1.3))
    subs = (1.0,) if high / low > 30 else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, ax: Any) -> None:
    handles, _ = ax.get_legend_handles_labels()
    names = ("how the work grew", "how the cost grew", "cost grew more than the work")
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
