"""How many requests a second a server holds, and why a closed loop does not tell.

    python -m load_tests capacity --precision float32 --precision int8 --slo-p99-ms 100
    python -m load_tests capacity --bundle model_store/mnist-mda/1 --seconds 2 --rounds 1 --plot capacity.svg

A server with default settings is asked in an open loop, from a process on the same cores, at one rate after another:
the knee is the highest at which p99 stays below what is asked for and 97 % of the requests are answered right
(`load_tests/open_loop/knee.py`). Every answer must have the label that the bundle's graph gives without a server.

Then both ways of measuring side by side, in rounds: wrk over 1, 8 and 32 connections, and the open loop at the rate
that wrk has just found; last the open loop at the knee and at half of it. Figures of these are medians of the rounds.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from load_tests.asked.asks import Ask, answered
from load_tests.asked.sent_images import Sent, encode_image
from load_tests.bench_serve import GraphPrecision
from load_tests.capacity.shown import show
from load_tests.open_loop.knee import Knee, Slo, Tried, TryRate, find_knee
from load_tests.open_loop.load import Offered, offer
from load_tests.rounds import Row, median_row
from load_tests.served import served
from load_tests.wrk import Load, ask, require_wrk
from serving.bundle import Bundle, Precision, graph_files
from serving.errors import ServingError
from serving.predictor import Predictor
from serving.settings import WorkerSettings
from training.files import replace_text

WARM_S = 5.0
WARM_CONNECTIONS = 8

Closed = Callable[[int, float], Load]
Opened = Callable[[float, float, int], Offered]


@dataclass(frozen=True)
class Search:
    """What is asked of a server, and how it is found out.

    Attributes:
        slo: what must hold.
        seconds: of each load.
        rounds: how often both loops are compared.
        connections: of the closed loop, a row each.
        gap: see `find_knee`.
    """

    slo: Slo
    seconds: float
    rounds: int
    connections: Sequence[int]
    gap: float


def question(bundle: Bundle, image: bytes, precision: Precision) -> Ask:
    """An image, whose answer must have the label that the graph gives without a server."""
    (right,) = Predictor(bundle, precision=precision).predict([image])
    if not isinstance(right, dict):
        raise ValueError(f"the bundle must answer what is sent, got {right}")
    return Ask("image", f"/predictions/{bundle.manifest.name}", image, check=partial(_same_label, right["label"]))


def _same_label(label: str, status: int, body: bytes) -> str | None:
    if (problem := answered(status, body)) is not None:
        return problem
    got = json.loads(body)["label"]
    return None if got == label else f"label must be {label}, got {got}"


def measure(folder: Path, precision: Precision, sent: Sent, search: Search) -> Row:
    """Everything about one graph of a bundle."""
    bundle = Bundle.load(folder)
    asked = question(bundle, encode_image(sent, bundle), precision)
    with served(folder, settings=WorkerSettings(precision=precision)) as up, NamedTemporaryFile() as image:
        image.write(asked.body)
        image.flush()
        closed = partial(ask, up.url(), Path(image.name))
        measured = measure_server(closed, partial(offer, up.server.url, asked), search)
    return {
        "bundle": f"{bundle.manifest.name}:{bundle.manifest.version}",
        "precision": precision,
        "digest": bundle.manifest.sha256[graph_files(precision)[0]],
        "image": sent.value,
        "image_bytes": len(asked.body),
        "slo": {"p99_ms": search.slo.p99_ms, "goodput": search.slo.goodput},
        "seconds": search.seconds,
        "rounds": search.rounds,
        **measured,
    }


def measure_server(closed: Closed, opened: Opened, search: Search) -> Row:
    """The knee, and then both loops in rounds; `closed` takes connections and seconds, `opened` rate, seconds, seed."""
    console, seconds = Console(stderr=True), search.seconds
    warm = closed(WARM_CONNECTIONS, min(WARM_S, seconds))
    if not warm.per_second:
        raise RuntimeError(f"the server must answer, got {warm.failed} requests without an answer")
    knee = find_knee(_told(opened, search, console), warm.per_second / 2, search.slo, gap=search.gap)
    pairs, at = list[list[Row]](), list[list[Row]]()
    for seed in track(range(search.rounds), "closed and open loop", console=console):
        pairs.append([side_by_side(closed, opened, count, seconds, seed) for count in search.connections])
        at.append(at_knee(opened, knee, seconds, seed))
    return {
        "knee_per_second": round(knee.per_second, 1),
        "breaks_at_per_second": round(knee.breaks_at, 1),
        "knee_runs": [len(knee.runs), sum(run.broken is None for run in knee.runs)],
        "tried": [tried_row(run) for run in sorted(knee.tried, key=lambda run: (run.per_second, run.seed))],
        "loops": [median_row(rows) for rows in zip(*pairs, strict=True)],
        "at": [median_row(rows) for rows in zip(*at, strict=True)],
    }


def _told(opened: Opened, search: Search, console: Console) -> TryRate:
    """Offers a rate, and says on the way what came of it."""

    def try_rate(rate: float, seed: int) -> Offered:
        offered = opened(rate, search.seconds, seed)
        verdict = search.slo.broken(offered) or f"holds, p99 {offered.percentile(99):.1f} ms"
        limit = f"; {offered.generator_limit}" if offered.generator_limit else ""
        console.print(f"{rate:.1f} requests/s: {verdict}{limit}", highlight=False, soft_wrap=True)
        return offered

    return try_rate


def side_by_side(closed: Closed, opened: Opened, count: int, seconds: float, seed: int) -> Row:
    """The closed loop over so many connections, and the open loop at the rate that this has found."""
    load = closed(count, seconds)
    figures = opened(load.per_second, seconds, seed).figures()
    return {
        "connections": count,
        "answers_per_second": round(load.per_second, 1),
        "closed_p50_ms": round(load.p50, 2),
        "closed_p99_ms": round(load.p99, 2),
        "closed_failed": load.failed,
        **{f"open_{key}": value for key, value in figures.items()},
    }


def at_knee(opened: Opened, knee: Knee, seconds: float, seed: int) -> list[Row]:
    """The open loop at half of the knee and at the knee."""
    loads = {"half of the knee": knee.per_second / 2, "the knee": knee.per_second}
    return [{"at": name, **opened(rate, seconds, seed).figures()} for name, rate in loads.items()]


def tried_row(run: Tried) -> Row:
    """One run of the search."""
    limit = run.offered.generator_limit
    return {"asked_per_second": round(run.per_second, 1), "seed": run.seed, **run.offered.figures()} | {
        "broken": run.broken,
        "generator_limit": limit,
    }


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("model_store/fashion-mnist-mda-best/1"),
    precision: Annotated[
        list[GraphPrecision] | None, typer.Option(help="Of the graph; repeatable, float32 if unset.")
    ] = None,
    image: Annotated[Sent, typer.Option(help="What is sent, as in `serve --help`.")] = Sent.shape,
    slo_p99_ms: Annotated[
        float, typer.Option("--slo-p99-ms", min=1, help="Most that the 99th percentile of latencies may be.")
    ] = 100,
    slo_goodput: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the offered requests that is answered right in time.")
    ] = 0.97,
    gap: Annotated[
        float,
        typer.Option(min=1.01, help="Ratio of the rate that no longer holds to the knee at which the search ends."),
    ] = 1.06,
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="How often closed and open loop are compared.")] = 3,
    connections: Annotated[str, typer.Option(help="Of the closed loop, with commas.")] = "1,8,32",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw latency against offered rate in.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put the figures into docs/results.json, the plot into docs/plots.")
    ] = False,
) -> None:
    """Find how many requests a second a server holds, by an open loop. It needs wrk (apt install wrk)."""
    from training import results  # which imports torch: not in every command of `load_tests`
    from training.capacity_plot import draw, record_plots
    from training.figures import save_svg

    require_wrk()
    search = Search(Slo(slo_p99_ms, slo_goodput), seconds, rounds, read_counts(connections), gap)
    try:
        if record:
            results.require_project()
        chosen = precision or [GraphPrecision("float32")]
        measured = [measure(bundle, one.value, image, search) for one in chosen]
    except (ServingError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for result in measured:
        show(result)
        if record:
            results.record("capacity", f"{result['bundle']} {result['precision']}", result)
    if record:
        record_plots(results.load_results())
    if plot is not None:
        save_svg(draw(measured), plot)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "command": "capacity", "results": measured}, indent=2) + "\n")


def read_counts(connections: str) -> list[int]:
    """Connections of the closed loop.

    Raises:
        SystemExit: if they are no numbers of at least 1.
    """
    try:
        counts = [int(count) for count in connections.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise SystemExit(f"error: --connections must be numbers of at least 1, as 1,8,32, got {connections}")
    return counts
