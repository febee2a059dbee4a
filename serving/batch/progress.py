"""What a person, or a log, sees of a job while it runs."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.batch.engine import Progress as Hears

LINE_S = 10.0  # between two lines of a log

Display = Literal["bar", "lines", "none"]


@contextmanager
def shown(display: Display, total: int | None, before: int, errors_before: int) -> Iterator[Hears]:
    """What hears of progress.

    Args:
        display: a bar, lines of JSON, or nothing.
        total: images in all, if that is known.
        before: images that were done before this run.
        errors_before: how many of them got an error.
    """
    began = time.monotonic()
    if display != "bar":
        yield _lines(total, before, errors_before, began) if display == "lines" else _nothing
        return
    columns = (
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]:,} errors"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=before, rate=0.0, errors=errors_before)

        def tell(images: int, errors: int) -> None:
            rate = images / max(time.monotonic() - began, 1e-3)
            bar.update(task, completed=before + images, rate=rate, errors=errors_before + errors)

        yield tell


def _lines(total: int | None, before: int, errors_before: int, began: float) -> Hears:
    last = began

    def tell(images: int, errors: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last < LINE_S:
            return
        last, rate = now, images / (now - began)
        left = None if total is None or not rate else round(max(0, total - before - images) / rate)
        figures = {"images": before + images, "of": total, "errors": errors_before + errors}
        line = {"event": "progress", **figures, "images_per_second": round(rate, 1), "seconds_left": left}
        print(json.dumps(line), flush=True, file=sys.stdout)

    return tell


def _nothing(images: int, errors: int) -> None:
    pass
