"""How cost grows: with models, classes, pixels, connections, images a request, and cores; in ratios.

    python -m load_tests growth
    python -m load_tests growth --only pixels --only cores --rounds 1

Servers of its own with default settings are asked by wrk on the same cores, in rounds. Every figure stands beside that
at the first point of its curve, and beside how the work grew. Where the cost has grown a tenth more than the work since
a point before, and more in every round, the curve bends, and it is said; so is where requests failed. A run that was
killed goes on with its next round.
"""

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from load_tests.growth import classes, connections, cores, instances, models, pixels
from load_tests.growth.curve import Curve, Reading
from load_tests.growth.dimension import Dimension, Setting, known
from load_tests.growth.kept import Kept
from load_tests.wrk import require_wrk
from serving.bundle import Bundle, graph_files
from serving.errors import ServingError
from serving.torchserve.signals import Interrupted
from training.files import replace_text
from training.growth_tables import bends, point_cells

DIMENSIONS = [one.DIMENSION for one in (models, classes, pixels, connections, instances, cores)]
SCRATCH = Path("data/growth")
console = Console(stderr=True)


def measure(dimension: Dimension, bundle: Path, seconds: int, rounds: int, kept: Kept, progress: Progress) -> None:
    """Measure the rounds of a dimension that are still missing."""
    task = progress.add_task(dimension.name, total=rounds, completed=min(rounds, len(kept.rounds)))
    if len(kept.rounds) >= rounds:
        return
    with (
        tempfile.TemporaryDirectory(prefix="growth-") as folder,
        closing(dimension.measure(Setting(bundle, seconds, Path(folder)))) as measured,
    ):
        while len(kept.rounds) < rounds:
            kept.add(next(measured))
            progress.advance(task)


def record_of(
    dimension: Dimension, bundle: Bundle, seconds: int, rounds: Sequence[Sequence[Reading]]
) -> dict[str, Any]:
    """A dimension's curves and what they were measured with, as plain values."""
    readings = [reading for one in rounds for reading in one]
    return {
        "about": dimension.about,
        **_of_what(dimension, bundle),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "rounds": len(rounds),
        "curves": [Curve.of(shape, readings).as_record() for shape in dimension.shapes],
    }


def _of_what(dimension: Dimension, bundle: Bundle) -> dict[str, str]:
    if not dimension.has_bundle:
        return {"bundle": f"untrained {classes.TRUNK}", "digest": classes.TRUNK, "precision": "float32"}
    name = f"{bundle.manifest.name}:{bundle.manifest.version}"
    return {"bundle": name, "digest": bundle.manifest.sha256[graph_files("float32")[0]], "precision": "float32"}


def _kept(dimension: Dimension, bundle: Bundle, seconds: int, scratch: Path) -> Kept:
    where = {"cores": len(os.sched_getaffinity(0)), "machine": platform.node()}
    return Kept(scratch, dimension.name, {**_of_what(dimension, bundle), **where, "seconds": seconds})


def _show(name: str, record: dict[str, Any]) -> None:
    for curve in record["curves"]:
        table = Table(title=f"{name}: {curve['name']}", title_justify="left")
        for column in (curve["x"], curve["unit"], "cost", f"work: {curve['work']}", "cost / work", "failed, %"):
            table.add_column(column, justify="right")
        for point in curve["points"]:
            table.add_row(*point_cells(point), style="" if point["bends_from"] is None else "bold")
        Console().print(table)


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("model_store/fashion-mnist-mda-best/1"),
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(d.name for d in DIMENSIONS)}; repeatable, all if unset."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
    seconds: Annotated[int, typer.Option(min=1, help="Of each load; longer where an answer takes long.")] = 3,
    scratch: Annotated[Path, typer.Option(help="Folder of the rounds of a run that is not whole.")] = SCRATCH,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw; beside --out if unset.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Show how cost grows with what is asked, against how the work grows. It needs wrk (apt install wrk)."""
    from training import results  # which imports torch: not in every command of `load_tests`

    require_wrk()
    try:
        if record:
            results.require_project()
        chosen, loaded = known(only or [], DIMENSIONS), Bundle.load(bundle)
        kept = {one.name: _kept(one, loaded, seconds, scratch) for one in chosen}
        _say_estimate(chosen, kept, seconds, rounds)
        with Progress(console=console) as progress:
            for one in chosen:
                measure(one, bundle, seconds, rounds, kept[one.name], progress)
    except (ServingError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    except Interrupted as error:
        raise SystemExit("error: a signal came; the same command goes on after the rounds that are whole") from error
    records = {one.name: record_of(one, loaded, seconds, kept[one.name].rounds[:rounds]) for one in chosen}
    for name, found in records.items():
        _show(name, found)
    Console(soft_wrap=True).print(*(bends(records) or ["No cost grows more than the work."]), sep="\n")
    _write(records, out, plot, record)
    for rounds_of_one in kept.values():
        rounds_of_one.forget()


def _say_estimate(chosen: Sequence[Dimension], kept: dict[str, Kept], seconds: int, rounds: int) -> None:
    missing = {one: max(0, rounds - len(kept[one.name].rounds)) for one in chosen}
    minutes = sum(one.estimate_s(seconds, count) for one, count in missing.items()) / 60
    there = sum(rounds - count for count in missing.values())
    console.print(
        f"It takes about {minutes:.0f} minutes on two quiet cores." + (f" {there} rounds are there." if there else "")
    )


def _write(records: dict[str, dict[str, Any]], out: Path | None, plot: Path | None, record: bool) -> None:
    from training import growth_plot, results

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "results": records}, indent=2) + "\n")
    if (picture := plot or (out and out.with_suffix(".svg"))) is not None:
        growth_plot.write(records, picture)
    if record:
        for name, found in records.items():
            results.record("growth", name, found)
        growth_plot.write(results.load_results()["growth"])
