"""What offline scoring does to a server on the same cores, without and with `--nice`, and what it still gets done.

    python -m load_tests beside

A real server with default settings is asked at half of what wrk has shown it to answer, by an open-ended load
(`load_tests/open_loop/load.py`): alone, beside `score`, and beside `score --nice`, in rounds. Each figure is the median
of the rounds.
"""

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.asked.asks import Ask
from load_tests.offline.commands import ROOT, score_command
from load_tests.offline.images import make_digits
from load_tests.offline.names import write_names
from load_tests.open_loop.load import Offered, offer
from load_tests.rounds import median_row
from load_tests.served import served
from load_tests.wrk import ask, require_wrk
from serving.bundle import Bundle, graph_files
from serving.errors import ServingError
from training.files import replace_text

SHARE = 0.5  # of what the server can answer
CONNECTIONS = 32  # of wrk, that finds it
NAMES_A_SECOND = 10_000  # more than are scored meanwhile
SHARD_IMAGES = 128  # what is done is counted by parts
BESIDE: dict[str, Sequence[str] | None] = {
    "alone": None,
    "beside score": (),
    "beside score --nice": ("--nice",),
    "beside score --nice --batch-size 8": ("--nice", "--batch-size", "8"),
}
STARTED_S = 60  # within which the first part must be there


@contextmanager
def scoring(names: Path, bundle: Path, out: Path, options: Sequence[str]) -> Iterator[None]:
    """`score` at work, from its first part on."""
    command = [*score_command(names, bundle, out), "--shard-images", str(SHARD_IMAGES), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + STARTED_S
        while not rows_done(out):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"score must begin within {STARTED_S} s, got:\n{process.communicate()[1][-4000:]}")
            time.sleep(0.05)
        yield
        if process.poll() is not None:
            raise RuntimeError(f"score must last longer than the load, got:\n{process.communicate()[1][-4000:]}")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def rows_done(out: Path) -> int:
    """Images in the parts that are there."""
    return sum(pq.read_metadata(part).num_rows for part in out.glob("part-*.parquet"))


def measure_beside(
    url: str, question: Ask, names: Path, bundle: Path, options: Sequence[str] | None, **load: Any
) -> dict[str, Any]:
    """One load; `options` are those of `score`, None is for none at work."""
    if options is None:
        return _row(offer(url, question, **load), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "answers")
        with scoring(names, bundle, out, options):
            before, began = rows_done(out), time.monotonic()
            offered = offer(url, question, **load)
            done, seconds = rows_done(out) - before, time.monotonic() - began
    return _row(offered, done / seconds)


def _row(offered: Offered, scored: float) -> dict[str, Any]:
    if offered.failed == len(offered.samples):
        raise RuntimeError(f"the server must answer, got {offered.failed} requests without an answer")
    return {
        "answers": len(offered.samples) - offered.failed,
        "failed": offered.failed,
        "p50_ms": round(offered.percentile(50), 2),
        "p99_ms": round(offered.percentile(99), 2),
        "scored_per_second": round(scored, 1),
    }


def measure(bundle: Path, paths: Sequence[Path], seconds: float, rounds: int) -> dict[str, Any]:
    """All rounds, with a server of their own."""
    manifest = Bundle.load(bundle).manifest
    with served(bundle) as up, tempfile.TemporaryDirectory() as scratch:
        names = Path(scratch, "names.txt")
        write_names(names, paths, round(NAMES_A_SECOND * seconds))
        question = Ask("PNG", f"/predictions/{manifest.name}", paths[0].read_bytes())
        capacity = [ask(up.url(), paths[0], CONNECTIONS, seconds).per_second for _ in range(2)][-1]
        load = {"per_second": SHARE * capacity, "seconds": seconds}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in BESIDE}
        for _ in track(range(rounds), "beside a server", console=Console(stderr=True)):
            for name, options in BESIDE.items():
                found[name].append(measure_beside(up.server.url, question, names, bundle, options, **load))
    return {
        "bundle": f"{manifest.name}:{manifest.version}",
        "precision": "float32",
        "digest": manifest.sha256[graph_files("float32")[0]],
        "capacity_per_second": round(capacity, 1),
        "offered_per_second": round(load["per_second"], 1),
        "rounds": rounds,
        "rows": {name: median_row(of_rounds) for name, of_rounds in found.items()},
    }


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder, served and scored with.")] = Path(
        "model_store/mnist-mda/1"
    ),
    images: Annotated[int, typer.Option(min=1, help="PNGs that are scored, over and over.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=1, help="Of each load in a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
    scratch: Annotated[Path, typer.Option(help="Folder for the images, which stay there.")] = Path("data/bench-beside"),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Measure a server's latency at half load beside offline scoring. It needs wrk (apt install wrk)."""
    from training import results  # which imports torch: not in every process that is begun

    require_wrk()
    if record:
        results.require_project()
    try:
        result = measure(bundle, make_digits(scratch, images).paths(), seconds, rounds)
    except (ServingError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    table = Table(title=f"{result['bundle']}, {result['offered_per_second']:g} requests/s")
    for column in ("", "answers", "failed", "p50 ms", "p99 ms", "scored images/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result["rows"].items():
        table.add_row(name, *(str(value) for key, value in row.items() if key != "rounds"))
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "command": "beside", "result": result}, indent=2) + "\n")
    if record:
        results.record("beside", result["bundle"], result)
