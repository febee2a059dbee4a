"""What a user could run instead of ours, and how fast each is: the same graph, images and answers in other servers.

    python -m load_tests peers
    python -m load_tests peers --precision int8 --peer mosec --peer fastapi --rounds 1
    python -m load_tests peers --peer mosec --variants

Every server is started in turn on the same cores, its answers are compared with ours, it is warmed up and then asked by
wrk, the load generator on the same cores, and by an open loop at half of the best rate that wrk has seen. Each has its
own locked environment in cache/peers, made on first use. Whatever a server does, the others are measured; the exit code
is 1 if one did not start, died or answered otherwise.
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import track

from load_tests.asked.sent_images import Sent, encode_image
from load_tests.peers.agreement import make_questions
from load_tests.peers.environments import chosen_peers, environment, packages
from load_tests.peers.peer import Peer
from load_tests.peers.running import PeerError
from load_tests.peers.schedule import OURS, Kept, estimated_minutes, turns
from load_tests.peers.shown import print_rows
from load_tests.peers.summary import summarise
from load_tests.peers.visit import Job, visit
from load_tests.wrk import require_wrk
from serving.bundle import Bundle, Precision, graph_files
from serving.errors import ServingError
from training.files import replace_text

GraphPrecision = StrEnum("GraphPrecision", {name: name for name in get_args(Precision)})
KEPT = Path("load_tests/results")
console = Console(stderr=True)


def measure(peers: Sequence[Peer], job: Job, rounds: int, kept: Kept) -> list[dict[str, Any]]:
    """Make all visits that were not made yet; all that were made."""
    by_name = {peer.name: peer for peer in peers}
    todo = [turn for turn in turns(list(by_name), rounds) if not kept.holds(turn)]
    minutes = estimated_minutes(todo, len(job.connections), job.seconds)
    console.print(f"{len(todo)} visits, about {minutes:.0f} minutes.")
    for turn in track(todo, job.precision, console=console):
        rates = kept.rates_for_ours(turn) if turn.peer == OURS else {}
        try:
            found = visit(by_name[turn.peer], job, rates)
        except (PeerError, ServingError) as error:
            console.print(f"{turn.peer}, round {turn.round + 1}: {error}", markup=False, highlight=False)
            found = {"error": str(error)}
        kept.add(turn, found)
    return kept.visits


def figures(peers: Sequence[Peer], job: Job, rounds: int, visits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of a run."""
    manifest = Bundle.load(job.bundle).manifest
    about = {
        peer.name: {"title": peer.title, "tuning": peer.tuning, "source": peer.source, "packages": packages(peer)}
        for peer in peers
    }
    rows = summarise(visits, job.connections)
    return {
        "bundle": f"{manifest.name}:{manifest.version}",
        "precision": job.precision,
        "digest": manifest.sha256[graph_files(job.precision)[0]],
        "connections": list(job.connections),
        "rounds": rounds,
        "seconds": job.seconds,
        "rows": {name: about[name] | row for name, row in rows.items()},
    }


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("model_store/fashion-mnist-mda-best/1"),
    precision: Annotated[
        list[GraphPrecision] | None, typer.Option(help="Of the graph; repeatable, float32 if unset.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Name of a folder of load_tests/peers; all if unset.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
    seconds: Annotated[int, typer.Option(min=1, help="Of each measurement by wrk; an open loop takes twice it.")] = 4,
    connections: Annotated[str, typer.Option(help="How many at once, with commas.")] = "1,8,32,128",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for an SVG file a precision; that of --out if unset.")
    ] = None,
    variants: Annotated[
        bool, typer.Option("--variants", help="Measure what was tried of each peer's tuning, too.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Measure other servers beside ours. It needs wrk (apt install wrk), and uv for their environments."""
    from training import peers_plot, results  # which imports torch: not in every command of `load_tests`

    require_wrk()
    if record:
        results.require_project()
    try:
        counts = read_counts(connections)
        peers = chosen_peers([OURS, *(name for name in peer if name != OURS)] if peer else [])
        if variants:
            peers = [way for one in peers for way in one.with_variants()]
        for one in peers:
            environment(one)
        wanted = [one.value for one in precision or [GraphPrecision("float32")]]
        measured = [_measured(bundle, one, peers, counts, rounds, seconds, resume) for one in wanted]
    except (ServingError, RuntimeError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    for result in measured:
        print_rows(result)
        if not any("closed" in row for row in result["rows"].values()):
            raise SystemExit("error: a server must have been measured, got none")
        if record:
            results.record("peers", f"{result['bundle']} {result['precision']}", result)
            peers_plot.write(result, peers_plot.file_of(result))
        if (folder := plot or (out and out.parent)) is not None:
            peers_plot.write(result, peers_plot.file_of(result, folder))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "results": measured}, indent=2) + "\n")
    if any("errors" in row for result in measured for row in result["rows"].values()):
        raise typer.Exit(1)


def read_counts(text: str) -> list[int]:
    """Numbers of connections.

    Raises:
        ValueError: if one is none.
    """
    counts = text.split(",")
    if not all(count.strip().isdigit() and int(count) for count in counts):
        raise ValueError(f"--connections must be whole numbers above 0, with commas between them, got {text!r}")
    return [int(count) for count in counts]


def _measured(
    folder: Path,
    precision: Precision,
    peers: Sequence[Peer],
    counts: Sequence[int],
    rounds: int,
    seconds: int,
    resume: bool,
) -> dict[str, Any]:
    """All of one precision; its visits are kept in a file of their own."""
    bundle = Bundle.load(folder)
    image = encode_image(Sent.shape, bundle)
    job = Job(folder.resolve(), precision, image, make_questions(bundle, precision), counts, seconds)
    names = [peer.name for peer in peers]
    settings = {"bundle": str(job.bundle), "peers": names, "connections": counts, "rounds": rounds, "seconds": seconds}
    kept = Kept(KEPT / f"peers-{precision}-visits.json", settings, resume)
    return figures(peers, job, rounds, measure(peers, job, rounds, kept))
