"""Pictures made of images: what a linear model looks for, and galleries of rows of images.

gallery([("7, component 2", images)], captions=["nearest"]).savefig("gallery.png")
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from training.figures import DPI, INK
from training.report.plots import shortened

MOST_PIXELS_A_SIDE = 64  # pixels; larger images are scaled down
TILE_INCHES = 0.46
CHARACTER_INCHES = 0.075  # of a row's name


class GalleryRow(NamedTuple):
    """A gallery's row: its name, and groups of images, each uint8 (n, channels, H, W)."""

    name: str
    groups: Sequence[Tensor]


def weight_templates(templates: NDArray[Any], classes: Sequence[str]) -> Figure:
    """What speaks for a class (red) and against it (blue), pixel by pixel, summed over channels.

    Args:
        templates: logits per pixel value, (C, channels, H, W).
        classes: C names.
    """
    columns = 5 if len(classes) <= 20 else 10
    rows = math.ceil(len(classes) / columns)
    tile = 1.4 if columns == 5 else 0.85
    figure = Figure(figsize=(columns * tile + 0.9, rows * (tile + 0.25)), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    summed = templates.sum(1)
    for ax, template, name in zip(axes, summed, classes, strict=False):
        limit = float(np.abs(template).max()) or 1.0
        image = ax.imshow(template / limit, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(shortened(name, 12), fontsize=10 if columns == 5 else 7)
    for ax in axes:
        ax.axis("off")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["against", "0", "for"], fontsize=9)
    return figure


def gallery(rows: Sequence[GalleryRow], captions: Sequence[str], columns: int) -> Figure:
    """Rows of images, each with its name, in groups side by side.

    Args:
        rows: every row has as many groups as there are captions; a group of fewer than `columns` images leaves blanks.
        captions: what the groups are.
        columns: images of a group.

    Raises:
        ValueError: if there is no image at all.
    """
    mosaic = _mosaic([GalleryRow(row.name, [_small(group) for group in row.groups]) for row in rows], columns)
    down, across = (side / mosaic.width * TILE_INCHES for side in mosaic.pixels.shape[:2])
    left = 0.3 + CHARACTER_INCHES * max(len(row.name) for row in rows)
    width, height = left + across + 0.05, down + 0.4
    figure = Figure(figsize=(width, height), dpi=DPI)
    ax = figure.add_axes((left / width, 0.05 / height, across / width, down / height))
    ax.imshow(mosaic.pixels, interpolation="nearest", aspect="auto")
    ax.axis("off")
    for top, row in zip(mosaic.tops, rows, strict=True):
        middle = top + mosaic.height / 2
        ax.text(-mosaic.width / 5, middle, row.name, ha="right", va="center", fontsize=8.5, color=INK)
    for start, caption in zip(mosaic.starts, captions, strict=True):
        ax.text(start, -mosaic.width / 6, caption, ha="left", va="bottom", fontsize=9, color=INK)
    return figure


class _Mosaic(NamedTuple):
    """All images in one: pixels (rows, columns, 3), where rows and groups begin, and the size of an image in it."""

    pixels: NDArray[np.uint8]
    tops: list[int]
    starts: list[int]
    height: int
    width: int


def _mosaic(rows: Sequence[GalleryRow], columns: int) -> _Mosaic:
    sample = next((group for row in rows for group in row.groups if len(group)), None)
    if sample is None:
        raise ValueError("gallery must have images, got none")
    height, width = sample.shape[2:]
    gap = max(1, width // 14)
    group_width = columns * (width + gap) + width // 2
    starts = [group * group_width for group in range(len(rows[0].groups))]
    tops = [row * (height + gap) for row in range(len(rows))]
    canvas = np.full((tops[-1] + height, starts[-1] + columns * (width + gap) - gap, 3), 255, np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for start, images in zip(starts, row.groups, strict=True):
            for position, image in enumerate(images[:columns]):
                left = start + position * (width + gap)
                canvas[top : top + height, left : left + width] = image.permute(1, 2, 0).numpy()
    return _Mosaic(canvas, tops, starts, height, width)


def _small(images: Tensor) -> Tensor:
    """Images with no side above `MOST_PIXELS_A_SIDE`."""
    longest = max(images.shape[2:])
    if longest <= MOST_PIXELS_A_SIDE or not len(images):
        return images
    size = [max(1, round(side * MOST_PIXELS_A_SIDE / longest)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
