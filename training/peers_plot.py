"""The record of the peers as one picture: answers a second of each server, and its p99 at half of its best rate.

write(load_results()["peers"]["mnist-mda:1 float32"], Path("docs/plots/peers-float32.svg"))
"""

from pathlib import Path
from typing import Any

from training.figures import COLOURS, INK, MARKERS, new_figure, plain, save_svg

FOLDER = Path("docs/plots")
WIDTH, ROW, REST = 10.5, 0.36, 1.5  # inches
OURS = "ours"


def file_of(record: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Where the picture of a record lies."""
    return folder / f"peers-{record['bundle'].partition(':')[0]}-{record['precision']}.svg"


def write(record: dict[str, Any], file: Path) -> Path:
    """Draw a record; the same one makes the same bytes."""
    rows = {name: row for name, row in reversed(record["rows"].items()) if "closed" in row}
    figure, grid = new_figure(WIDTH, ROW * len(rows) + REST, 1, 2, sharey=True, width_ratios=(3, 2))
    _rates(grid[0, 0], rows, record["connections"])
    _latencies(grid[0, 1], rows)
    grid[0, 0].set_yticks(range(len(rows)), [row["title"] for row in rows.values()])
    figure.suptitle(f"{record['bundle']} in {record['precision']}, {record['rounds']} rounds", fontsize=10, color=INK)
    return save_svg(figure, file)


def _rates(axes: Any, rows: dict[str, Any], connections: list[int]) -> None:
    """Medians as marks, the spread over the rounds as lines."""
    lanes = len(connections) + 1
    for n, (count, colour, marker) in enumerate(zip(connections, COLOURS, MARKERS, strict=False)):
        for y, row in enumerate(rows.values()):
            at = row["closed"][str(count)]
            lane = y + 0.5 - (n + 1) / lanes
            axes.plot([at["least_per_second"], at["most_per_second"]], [lane, lane], color=colour, linewidth=1.2)
            label = {"label": f"{count}"} if y == 0 else {}
            axes.plot(at["per_second"], lane, marker, color=colour, markersize=5, **label)
    axes.set_xlim(left=0)
    axes.set_xlabel("answers/s (line: least and most of the rounds)", fontsize=9)
    _legend(axes, title="connections")
    _between(axes, len(rows))


def _latencies(axes: Any, rows: dict[str, Any]) -> None:
    ours = {y: row["ours_at_its_rate"] for y, row in enumerate(rows.values()) if row.get("ours_at_its_rate")}
    own = [row["open"]["p99_ms"] for row in rows.values()]
    axes.plot(own, range(len(rows)), MARKERS[1], color=COLOURS[0], markersize=6, label="this server")
    at_rate = [row["p99_ms"] for row in ours.values()]
    mark = {"markerfacecolor": "none", "markersize": 8, "color": COLOURS[1]}
    axes.plot(at_rate, list(ours), MARKERS[0], **mark, label="ours at the same rate")
    axes.set_xscale("log")
    _plain_numbers(axes)
    axes.set_xlabel("p99 at half of its best rate, ms (open loop)", fontsize=9)
    _legend(axes)
    _between(axes, len(rows))


def _plain_numbers(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, title: str | None = None) -> None:
    options = {"title": title, "title_fontsize": 8} if title else {}
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, **options)


def _between(axes: Any, rows: int) -> None:
    """A plain frame, and lines between the servers."""
    plain(axes)
    axes.grid(visible=False, axis="y")
    for y in range(1, rows):
        axes.axhline(y - 0.5, color="#E6E6E6", linewidth=0.6, zorder=0)
    axes.set_ylim(-0.5, rows - 0.5)
