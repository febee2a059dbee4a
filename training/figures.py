"""Pictures: one look for all, drawn without a display.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from training.files import replace_file

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
INK = "#222222"
MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 130


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of `width` x `height` inches and its axes (rows, columns), always two-dimensional."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Any, file: Path) -> Path:
    """Write a PNG file, its folder too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def svg(figure: Any) -> bytes:
    """A figure as SVG; the same figure makes the same bytes."""
    from matplotlib import rc_context

    stream = BytesIO()
    with rc_context({"svg.hashsalt": "discriminant", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def save_svg(figure: Any, file: Path) -> Path:
    """Write an SVG file, its folder too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda out: out.write(svg(figure)))
    return file


def plain(axes: Any) -> None:
    """A thin grid, and a frame without its upper and right sides."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)


def tidy(axes: Any, *, title: str = "", x: str = "", y: str = "") -> None:
    """Name the axes and make them plain."""
    axes.set(title=title, xlabel=x, ylabel=y)
    plain(axes)


def show_image(axes: Any, pixels: Any, title: str = "", *, colour: str = "black") -> None:
    """Show uint8 or float pixels (channels, H, W), gray or in colour, without ticks."""
    picture = pixels.permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255 if picture.dtype.kind == "u" else 1)
    axes.set_title(title, fontsize=9, color=colour)
    axes.set(xticks=[], yticks=[])


def percent_axis(axis: Any, decimals: int = 0) -> None:
    """Show shares as percentages."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers are best seen on a logarithmic axis: above zero and over a factor of 10 or more."""
    return min(values) > 0 and max(values) >= 10 * min(values)
