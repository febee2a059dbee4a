"""Latency against offered rate, drawn from records of `python -m load_tests capacity`.

save_svg(draw(records), Path("docs/plots/capacity-mnist-mda-1.svg"))
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from training.figures import COLOURS, INK, MARKERS, new_figure, plain, save_svg

PLOTS = Path("docs/plots")
SIZE = (7.5, 4.6)  # inches
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def draw(records: Sequence[dict[str, Any]]) -> Any:
    """One figure of the graphs of one bundle: p50 and p99 of every rate tried, the bound, and each knee."""
    figure, ((axes,),) = new_figure(*SIZE)
    plain(axes)
    for record, colour, marker in zip(records, COLOURS, MARKERS, strict=False):
        for key, style, face in (("p50_ms", "--", "white"), ("p99_ms", "-", colour)):
            points = _medians(record, key)
            axes.plot(
                *zip(*points, strict=True),
                style,
                color=colour,
                marker=marker,
                markerfacecolor=face,
                markersize=5,
                label=f"{key.removesuffix('_ms')}, {record['precision']}",
            )
        axes.axvline(record["knee_per_second"], color=colour, linewidth=1, linestyle=":")
        _name_knee(axes, record)
    _name_bound(axes, records[0]["slo"]["p99_ms"])
    _scale(axes, records)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=4)
    return figure


def _name_knee(axes: Any, record: dict[str, Any]) -> None:
    """Words above the line of a knee."""
    axes.annotate(
        f"{record['precision']} holds {record['knee_per_second']:,.0f}/s",
        (record["knee_per_second"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color=INK,
    )


def _name_bound(axes: Any, bound: float) -> None:
    """A line at what p99 may be, and words on it."""
    axes.axhline(bound, color=INK, linewidth=1)
    axes.annotate(
        f"p99 at most {bound:g} ms",
        (0.01, bound),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=9,
        color=INK,
    )


def _medians(record: dict[str, Any], key: str) -> list[tuple[float, float]]:
    """Of the runs at each rate, those without a right answer left out."""
    found: dict[float, list[float]] = {}
    for run in record["tried"]:
        if run[key] is not None:
            found.setdefault(run["asked_per_second"], []).append(run[key])
    return sorted((rate, median_low(values)) for rate, values in found.items())


def _scale(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Logarithmic in milliseconds, with plain numbers."""
    latencies = [run[key] for record in records for run in record["tried"] for key in ("p50_ms", "p99_ms") if run[key]]
    low, high = min(latencies) / 1.5, max(*latencies, records[0]["slo"]["p99_ms"])
    axes.set_yscale("log")
    axes.set_ylim(low, 1.5 * high)
    axes.set_yticks([tick for tick in TICKS if low <= tick <= 1.5 * high], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, None)
    axes.set_xlabel("offered, requests/s", fontsize=10)
    axes.set_ylabel("latency from when due, ms", fontsize=10)
    record = records[0]
    axes.set_title(
        f"{record['bundle']}, {record['image']} of {record['image_bytes']:,} bytes", fontsize=10, color=INK, pad=18
    )


def plot_of(bundle: str) -> Path:
    """Where the recorded plot of a bundle lies."""
    return PLOTS / f"capacity-{bundle.replace(':', '-')}.svg"


def record_plots(results: dict[str, Any]) -> None:
    """Draw the plot of each bundle that there are records of."""
    records = results.get("capacity", {}).values()
    for bundle in dict.fromkeys(record["bundle"] for record in records):
        save_svg(draw([record for record in records if record["bundle"] == bundle]), plot_of(bundle))
