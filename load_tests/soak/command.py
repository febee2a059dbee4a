"""A server under load for half an hour, while all that can befall it does: is everything as it was promised?

    python -m load_tests soak                             # 30 minutes, 80 % of what the server holds
    python -m load_tests soak --minutes 3 --rate 100      # shorter, at a rate of one's own

A real server of its own is asked by an open loop, every answer checked. On the way it is stopped and started, a worker
is killed, a version deployed and rolled back, bad ones refused; corrupt images come in a burst, and clients hang. Each
promise is a line of what was asked and got; one that was broken makes the exit code 1.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from load_tests.asked.asks import Ask
from load_tests.asked.kinds import make_asks
from load_tests.open_loop.knee import find_knee
from load_tests.open_loop.load import Offered, offer
from load_tests.soak.faults import FAULTS, Happened, befall
from load_tests.soak.promises import kept
from load_tests.soak.recorded import figures_of
from load_tests.soak.site import Bounds, Site, made_site
from load_tests.soak.steady_load import SteadyLoad
from load_tests.soak.trends import Line
from load_tests.soak.watch import Watch
from serving.bundle import Precision
from serving.errors import ServingError
from training.files import replace_text

SHARE = 0.8  # of what the server holds
MIX = {
    "png": 8, "jpeg": 4, "webp": 2, "multipart": 2, "json_8": 1, "open_inference": 1, "photo_2mp": 1, "corrupt": 1,
    "oversized": 1,
}  # fmt: skip
WINDOWS, LEAST_WINDOW_S, MOST_WINDOW_S = 180, 4.0, 10.0
LOOKS, LEAST_PAUSE_S, MOST_PAUSE_S = 600, 0.5, 5.0  # at the processes
HOLD_SHARE = 0.06  # of the time, that clients hang
KNEE_RUN_S, KNEE_START, KNEE_GAP = 5, 100, 1.1  # of a quick search for what the server holds


@dataclass(frozen=True)
class Soaked:
    """What came of it all.

    Attributes:
        lines: each promise.
        figures: for JSON.
    """

    lines: Sequence[Line]
    figures: dict[str, Any]


def soak(site: Site, asks: Sequence[Ask], per_second: float, seconds: float, progress: Progress) -> Soaked:
    """Keep a server under load for a time, and let every fault happen to it.

    Args:
        site: the server, which runs.
        asks: what is asked.
        per_second: requests, on average.
        seconds: how long; longer if the faults take it.
        progress: shows what happens.
    """
    faults: list[Happened] = []
    window_s = min(max(seconds / WINDOWS, LEAST_WINDOW_S), MOST_WINDOW_S)
    pause_s = min(max(seconds / LOOKS, LEAST_PAUSE_S), MOST_PAUSE_S)
    began = time.monotonic()
    with Watch(site.state, pause_s) as watch, SteadyLoad(site.url, asks, per_second, window_s, began) as load:
        for fault in FAULTS:
            _wait(began + fault.at * seconds)
            progress.update(progress.task_ids[0], description=fault.description)
            faults.append(befall(fault, site, began))
            _print(faults[-1].lines, progress.console, f"{_clock(faults[-1].began_s)} {fault.name}")
            progress.update(progress.task_ids[0], description="under load")
        _wait(began + seconds)
    histories = list(watch.histories.values())
    lines = kept(load.windows, load.failures, faults, histories, site.settings.batch_size, site.bounds.most_refused)
    return Soaked(lines, figures_of(site, per_second, began, load, faults, histories, lines))


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("model_store/mnist-mda/1"),
    precision: Annotated[Precision, typer.Option(help="Of the graph.")] = "float32",
    minutes: Annotated[float, typer.Option(min=1, help="How long the load lasts.")] = 30,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Requests a second.", show_default="80 % of what the server holds")
    ] = None,
    ready_within: Annotated[float, typer.Option(min=1, help="Seconds that the server may take to be ready again.")] = 5,
    refused: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests that the server may refuse while it is up.")
    ] = 0.01,
    workers: Annotated[int | None, typer.Option(min=1, help="Instead of the default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG file to write.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Keep a server of its own under load while faults happen to it; exit code 1 if it broke a promise."""
    from training import results  # which imports torch: not in every command of `load_tests`
    from training.soak_tables import PLOTS, file_of

    try:
        if record:
            results.require_project()
        soaked = _soaked(
            bundle, precision, minutes, rate, Bounds(ready_within, refused, HOLD_SHARE * 60 * minutes), workers
        )
    except (ServingError, ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    _print(soaked.lines, Console(), "What was asked: what came of it")
    _write({**results.stamp(), **soaked.figures}, out, report, plot)
    if record:
        name = f"{soaked.figures['bundle']} {soaked.figures['precision']}"
        results.record("soak", name, soaked.figures)
        _write({**results.stamp(), **soaked.figures}, None, None, PLOTS / file_of(name))
    if broken := sum(not line.is_kept for line in soaked.lines):
        raise SystemExit(f"error: every promise must be kept, got {broken} that were not")


def _soaked(
    bundle: Path, precision: Precision, minutes: float, rate: float | None, bounds: Bounds, workers: int | None
) -> Soaked:
    """Start a server, find out its rate if none is given, and soak it."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as scratch,
        _progress() as progress,
        made_site(bundle, Path(scratch), precision, bounds, workers) as site,
    ):
        progress.add_task("every answer is asked for alone", total=None)
        asks = make_asks(site.url, site.name, MIX)
        per_second = rate or _rate(site, asks, progress)
        progress.console.print(f"{per_second:.0f} requests/s for {minutes:g} minutes")
        return soak(site, asks, per_second, 60 * minutes, progress)


def _write(figures: dict[str, Any], out: Path | None, report: Path | None, plot: Path | None) -> None:
    """Write the files that are asked for."""
    from training.figures import save_svg
    from training.soak_plot import draw, write_report

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({"command": "soak", **figures}, indent=2) + "\n")
    if report is not None:
        write_report(figures, report)
    if plot is not None:
        save_svg(draw(figures), plot)


def _rate(site: Site, asks: Sequence[Ask], progress: Progress) -> float:
    """Four fifths of what the server holds."""

    def try_rate(rate: float, seed: int) -> Offered:
        progress.update(progress.task_ids[0], description=f"how much the server holds: {rate:.0f} requests/s?")
        return offer(site.url, asks, rate, KNEE_RUN_S, seed)

    knee = find_knee(try_rate, KNEE_START, gap=KNEE_GAP, confirmations=1).per_second
    progress.console.print(f"the server holds {knee:.0f} requests/s")
    return SHARE * knee


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _wait(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def _clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def _print(lines: Sequence[Line], console: Console, title: str) -> None:
    """Each promise and what came of it."""
    console.print(title, highlight=False)
    for line in lines:
        mark = "  kept  " if line.is_kept else "  [red]BROKEN[/red]"
        console.print(f"{mark} {escape(line.asked)}: {escape(line.got)}", highlight=False, soft_wrap=True)
