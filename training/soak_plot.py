"""A soak over time, drawn from its record: rate, latency, failures, memory and descriptors, with the faults marked.

save_svg(draw(record), Path("docs/plots/soak-mnist-mda-1-float32.svg"))
write_report(record, Path("soak.html"))      # the same drawing on a page, under what was asked and got
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from serving.page import filled_in
from training.figures import BLUE, GREEN, INK, ORANGE, PINK, RED, SKY, new_figure, plain, svg
from training.files import replace_file

TEMPLATE = Path(__file__).with_name("soak.html.jinja")
FAULT = "#F3EEDF"
OUTCOMES = {"refused": (SKY, ""), "cut": (ORANGE, "//"), "lost": (RED, "xx"), "hung": (PINK, ".."), "wrong": (INK, "")}
STYLES = {"java": (BLUE, "-"), "worker": (RED, "--"), "exporter": (GREEN, ":"), "keeper": (PINK, "-.")}
STEPS_S, TICKS = (10, 20, 30, 60, 120, 300, 600, 1800, 3600), 12
FONT = 9


def draw(record: dict[str, Any]) -> Figure:
    """Five panels over the same time."""
    figure: Figure
    figure, grid = new_figure(11, 10.5, rows=5, sharex=True, height_ratios=[2, 2, 1.6, 2, 2])
    axes = list(grid[:, 0])
    for panel, ax in zip((_rate, _latency, _failures, _memory, _descriptors), axes, strict=True):
        plain(ax)
        _mark(ax, record["faults"])
        panel(ax, record)
        ax.set_ylabel(ax.get_ylabel(), fontsize=FONT)
        ax.yaxis.set_major_locator(ax.yaxis.get_major_locator() if ax.get_yscale() == "log" else MaxNLocator(5))
    _name(axes[0], record["faults"])
    axes[-1].set_xlabel("time, minutes:seconds", fontsize=FONT)
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds // 60:.0f}:{seconds % 60:02.0f}"))
    seconds = max(one["at_s"] + one["seconds"] for one in record["windows"])
    axes[-1].set_xlim(0, seconds)
    axes[-1].xaxis.set_major_locator(
        MultipleLocator(next((one for one in STEPS_S if seconds / one <= TICKS), STEPS_S[-1]))
    )
    figure.align_ylabels(axes)
    figure.suptitle(
        f"{record['bundle']} {record['precision']}, {record['per_second']:g} requests/s; {record['machine']}",
        fontsize=10,
    )
    return figure


def _rate(ax: Axes, record: dict[str, Any]) -> None:
    times = _middles(record)
    for label, key, colour, style in (("sent", None, ORANGE, "--"), ("answered right", "right", BLUE, "-")):
        counts = [one["requests"] if key is None else one["outcomes"].get(key, 0) for one in record["windows"]]
        rates = [count / one["seconds"] for count, one in zip(counts, record["windows"], strict=True)]
        ax.plot(times, rates, style, color=colour, linewidth=1.3, label=label)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("requests/s")
    _legend(ax)


def _latency(ax: Axes, record: dict[str, Any]) -> None:
    for key, colour, marker in (("p99_ms", RED, "s"), ("p50_ms", BLUE, "o")):
        found = [(at, one[key]) for at, one in zip(_middles(record), record["windows"], strict=True) if one[key]]
        ax.plot(*zip(*found, strict=True), marker=marker, markersize=3, color=colour, linewidth=0.9, label=key[:3])
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.set_ylabel("latency, ms")
    _legend(ax)


def _failures(ax: Axes, record: dict[str, Any]) -> None:
    below = [0.0] * len(record["windows"])
    for outcome, (colour, hatch) in OUTCOMES.items():
        counts = [one["outcomes"].get(outcome, 0) for one in record["windows"]]
        if not any(counts):
            continue
        widths = [one["seconds"] for one in record["windows"]]
        bars: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.4}
        ax.bar(_middles(record), counts, widths, below, label=f"{outcome} ({sum(counts):,})", **bars)
        below = [one + other for one, other in zip(below, counts, strict=True)]
    ax.set_ylabel("failed requests")
    if any(below):
        _legend(ax)


def _memory(ax: Axes, record: dict[str, Any]) -> None:
    _of_processes(ax, record, "megabytes")
    ax.set_ylabel("memory (RSS), MB")
    _legend(ax)


def _descriptors(ax: Axes, record: dict[str, Any]) -> None:
    _of_processes(ax, record, "descriptors")
    ax.set_ylabel("descriptors")


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=FONT, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _of_processes(ax: Axes, record: dict[str, Any], key: str) -> None:
    """A line a process; those of one role look alike, and begin with a dot."""
    named: set[str] = set()
    for one in record["processes"]:
        colour, style = STYLES[one["role"]]
        label = None if one["role"] in named else one["role"]
        named.add(one["role"])
        ax.plot(one["at_s"], one[key], style, color=colour, linewidth=1.3, label=label)
        ax.plot(one["at_s"][:1], one[key][:1], "o", color=colour, markersize=3.5)
    ax.set_ylim(bottom=0)


def _mark(ax: Axes, faults: Iterable[dict[str, Any]]) -> None:
    for fault in faults:
        ax.axvspan(fault["began_s"], fault["ended_s"], color=FAULT, linewidth=0, zorder=0)
        ax.axvline(fault["began_s"], color="#999999", linewidth=0.7, zorder=0.5)


def _name(ax: Axes, faults: Iterable[dict[str, Any]]) -> None:
    for fault in faults:
        place: dict[str, Any] = {"xy": (fault["began_s"], 1.0), "xycoords": ("data", "axes fraction"), "xytext": (0, 4)}
        ax.annotate(fault["name"], **place, textcoords="offset points", rotation=35, fontsize=FONT, va="bottom")


def _middles(record: dict[str, Any]) -> list[float]:
    return [one["at_s"] + one["seconds"] / 2 for one in record["windows"]]


def write_report(record: dict[str, Any], file: Path) -> None:
    """Write a page that needs nothing from elsewhere."""
    picture = base64.b64encode(svg(draw(record))).decode()
    page = filled_in(TEMPLATE, record=record, picture=picture, minutes=record["seconds"] / 60)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda out: out.write(page.encode()))
