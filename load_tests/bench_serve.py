"""How much of the bare runtime's speed arrives at the other end of HTTP.

    python -m load_tests serve --bundle model_store/fashion-mnist-mda-best/1
    python -m load_tests serve --bundle model_store/flowers12-mda/1 --image photo --image camera

One run on one machine, in rounds, so that a machine whose speed wanders slows both: the bundle's graph alone, by ONNX
Runtime in as many processes and threads as infer at a time in the server, which shares a batch out among its threads: a
lone image by all of them together, batches in a process a core; then a server with default settings, asked by
wrk over 1, 8 and 32 connections (128 too on a GPU), the load generator on the same cores. The ratio is answers a second
over images a second at a batch as large as there are connections; for one connection the latency counts: its median,
less the median of the bare graph. Of a photo the server decodes the JPEG too, which the bare graph never does. Each
figure is the median of the rounds.
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.asked.sent_images import Sent, encode_image, shape
from load_tests.bare import Layout, bare_runtime
from load_tests.rounds import median_row
from load_tests.served import served
from load_tests.wrk import Load, ask, require_wrk
from serving.bundle import Bundle, Precision, graph_files
from serving.cores import cores, threads
from serving.errors import ServingError
from serving.settings import WorkerSettings
from training.files import replace_text
from training.speed_tables import photo_in_words

Processor = Literal["cpu", "gpu"]
GraphPrecision = StrEnum("GraphPrecision", {name: name for name in get_args(Precision)})  # one option, several values
CONNECTIONS: dict[Processor, Sequence[int]] = {"cpu": (1, 8, 32), "gpu": (1, 8, 32, 128)}


def measure_bundle(
    folder: Path,
    precision: Precision,
    sent: Sent,
    device: Processor,
    connections: Sequence[int],
    seconds: float,
    rounds: int,
    **options: Any,
) -> dict[str, Any]:
    """Both measurements of one bundle on one image; `options` are more of its settings."""
    bundle = Bundle.load(folder)
    where = "cuda" if device == "gpu" else "cpu"
    measured: dict[int, list[dict[str, Any]]] = {count: [] for count in connections}
    chosen = WorkerSettings(precision=precision, **options)
    of_one = threads(chosen)
    layout = Layout(1 if device == "gpu" else max(1, cores() // of_one), of_one)
    shared_out = layout if device == "gpu" else Layout(layout.inferences * of_one, 1)
    with served(folder, settings=chosen, device=device) as up, NamedTemporaryFile() as file:
        image = Path(file.name)
        image.write_bytes(encode_image(sent, bundle))
        photo = {} if sent is Sent.shape else {"image": sent.value, "image_bytes": image.stat().st_size}
        ask(up.url(), image, max(connections), min(5, seconds))  # Java compiles what it runs often
        for _ in track(range(rounds), f"{bundle.manifest.name} {precision} {sent}", console=Console(stderr=True)):
            for count in connections:
                images = np.repeat(shape(bundle)[None], count, 0)
                of_count = shared_out if count >= of_one else layout
                per_second, milliseconds = bare_runtime(bundle, of_count, images, count, seconds, precision, where)
                measured[count].append(_row(count, ask(up.url(), image, count, seconds), per_second, milliseconds))
    return {
        "bundle": f"{bundle.manifest.name}:{bundle.manifest.version}",
        "precision": precision,
        "digest": bundle.manifest.sha256[graph_files(precision)[0]],
        **photo,
        "device": device,
        "inferences": layout.inferences,
        "threads": layout.threads,
        "seconds_to_ready": round(up.ready_s, 1),
        "rounds": rounds,
        "rows": [median_row(measured[count]) for count in connections],
    }


def _row(connections: int, load: Load, per_second: float, milliseconds: float) -> dict[str, Any]:
    return {
        "connections": connections,
        "answers_per_second": round(load.per_second, 1),
        "bare_per_second": round(per_second, 1),
        "ratio": round(load.per_second / per_second, 3),
        "p50_ms": round(load.p50, 2),
        "p99_ms": round(load.p99, 2),
        "bare_ms": round(milliseconds, 2),
        "failed": load.failed,
    }


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("model_store/fashion-mnist-mda-best/1"),
    precision: Annotated[
        list[GraphPrecision] | None, typer.Option(help="Of the graph; repeatable, float32 if unset.")
    ] = None,
    image: Annotated[
        list[Sent] | None,
        typer.Option(
            help="What is sent: a drawn shape of the model's size, a photo of that size in 28 kB, one of a camera with "
            "12 megapixels; repeatable, shape if unset."
        ),
    ] = None,
    device: Annotated[Processor, typer.Option(help="Where the workers compute.")] = "cpu",
    connections: Annotated[str, typer.Option(help="How many at once, with commas; 1,8,32, on a GPU also 128.")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement in a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 5,
    workers: Annotated[int | None, typer.Option(min=1, help="Instead of the default.")] = None,
    inference_threads: Annotated[int | None, typer.Option("--threads", min=1, help="Instead of the default.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Measure a bundle's server against the bare graph. It needs wrk (apt install wrk)."""
    from training import results  # which imports torch: not in every command of `load_tests`

    require_wrk()
    if record:
        results.require_project()
    options = {
        name: value for name, value in (("workers", workers), ("threads", inference_threads)) if value is not None
    }
    counts = [int(count) for count in connections.split(",")] if connections else CONNECTIONS[device]
    chosen = [(one.value, sent) for one in precision or [GraphPrecision("float32")] for sent in image or [Sent.shape]]
    try:
        measured = [
            measure_bundle(bundle, precise, sent, device, counts, seconds, rounds, **options)
            for precise, sent in chosen
        ]
    except ServingError as error:
        raise SystemExit(f"error: {error}") from error
    for result in measured:
        what = f"{result['bundle']} {result['precision']}" + photo_in_words(result)
        table = Table(title=f"{what}, {result['inferences']} x {result['threads']} threads")
        for name in ("at once", "answers/s", "bare images/s", "ratio", "p50 ms", "p99 ms", "bare ms", "failed"):
            table.add_column(name, justify="right")
        for row in result["rows"]:
            table.add_row(*(str(value) for key, value in row.items() if key != "rounds"))
        Console().print(table, f"ready in {result['seconds_to_ready']} s", sep="\n")
        if record:
            key = (result["bundle"], result["precision"], device, *([result["image"]] if "image" in result else []))
            results.record("serving", " ".join(key), result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "command": "serve", "results": measured}, indent=2) + "\n")
