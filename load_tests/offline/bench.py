"""How much of the machine's bare speed offline scoring reaches, and how much memory it takes.

    python -m load_tests batch

One run on one machine, in rounds, so that a machine whose speed wanders slows all alike: the bundle's graph alone on
decoded arrays, and the same images read and decoded alone, each in as many processes as there are cores; then
`python -m serving score` on the images as files and as tar shards; then what one would write instead, by Ray Data and
by PyTorch's DataLoader. The slower of the two bare speeds is the limit, and a ratio is of that. "Both" is what the
cores would reach if each decoded and inferred in turn, and did nothing else. Each figure is the median of the rounds.
"""

import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.bare import Layout, bare_decoding, bare_runtime, read_as_served, read_plainly
from load_tests.offline.commands import OUT, PEERS, Ran, WrongLabels, check_labels, run, score_command
from load_tests.offline.images import ImageSet, make_digits, make_photos
from load_tests.offline.names import measure_names
from load_tests.rounds import Row, median_row
from serving.bundle import Bundle, Precision, graph_files
from serving.cores import cores
from serving.errors import ServingError
from training.files import replace_text

BATCH = 64
IN_MEMORY = 64 * BATCH  # decoded images that the bare graph runs over
SMALL, LARGE = Path("model_store/mnist-mda/1"), Path("model_store/cifar100-lda-best/1")
COLUMNS = {
    "by": "by", "form": "as", "images_per_second": "images/s", "command_images_per_second": "whole command",
    "ratio": "ratio", "ratio_of_both": "of both", "peak_mb": "peak MB",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is scored by what."""

    images: str
    bundle: Path
    precision: Precision


CASES = (
    Case("png", SMALL, "float32"),
    Case("png", SMALL, "int8"),
    Case("jpeg", LARGE, "float32"),
    Case("jpeg", LARGE, "int8"),
)


@dataclass(frozen=True)
class Bare:
    """What the work alone takes, images a second: by the best layout, by `read_image`, by Pillow alone."""

    runtime: float
    layout: Layout
    decoding: float
    pillow: float

    @property
    def both(self) -> float:
        """If the cores decode and infer in turn."""
        return 1 / (1 / self.runtime + 1 / self.decoding)

    @property
    def limit(self) -> str:
        """The slower one."""
        return "runtime" if self.runtime < self.decoding else "decoding"


def layouts() -> list[Layout]:
    """The ways to share the cores among inferences: one thread each, and one inference on all of them."""
    return sorted({Layout(cores(), 1), Layout(1, cores())}, key=lambda layout: layout.threads)


def measure_bare(case: Case, bundle: Bundle, images: ImageSet, decoded: NDArray[np.uint8], seconds: float) -> Bare:
    """One round of what the work alone takes."""
    rates = {one: bare_runtime(bundle, one, decoded, BATCH, seconds, case.precision)[0] for one in layouts()}
    best = max(rates, key=rates.__getitem__)
    paths, spec = images.paths(), bundle.manifest.input
    readers = [bare_decoding(paths, spec, reader, cores()) for reader in (read_as_served, read_plainly)]
    return Bare(rates[best], best, *readers)


def measure_commands(case: Case, images: ImageSet, peers: Sequence[str], scratch: Path) -> Iterable[tuple[Row, Ran]]:
    """One round of the commands: ours on files and on tar shards, then the peers on files."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        table = Path(folder, OUT)
        ours = None
        for form, source in (("files", images.files), ("tar", images.tars)):
            ran = run(score_command(source, case.bundle, table, case.precision), table)
            ours = ours or ran
            if ran.images != images.count or list(ran.labels.values()) != list(ours.labels.values()):
                raise RuntimeError(f"score must give {images.words} as {form} the same labels, got others")
            yield {"by": "score", "form": form}, ran
        for peer in peers if case.precision == "float32" else ():
            ran = run(PEERS[peer](images.files, case.bundle, table), table)
            yield {"by": peer, "form": "files", **_refusal(peer, ran, ours)}, ran


def _refusal(peer: str, ran: Ran, ours: Ran | None) -> Row:
    try:
        check_labels(peer, ran.labels, ours.labels if ours else {})
    except WrongLabels as error:
        return {"refused": str(error)}
    return {}


def row_of(what: Row, ran: Ran, bare: Bare) -> Row:
    """The figures of one run of a command; of one that was refused, why."""
    if "refused" in what:
        return what
    per_second = ran.images / ran.seconds
    return {
        **what,
        "images_per_second": round(per_second, 1),
        "command_images_per_second": round(ran.images / ran.command_seconds, 1),
        "ratio": round(per_second / min(bare.runtime, bare.decoding), 3),
        "ratio_of_both": round(per_second / bare.both, 3),
        "peak_mb": round(ran.peak_mb),
    }


def measure_case(
    case: Case, images: ImageSet, rounds: int, seconds: float, peers: Sequence[str], scratch: Path
) -> dict[str, Any]:
    """All rounds of one bundle's graph on one set of images."""
    bundle = Bundle.load(case.bundle)
    decoded = decode_some(images, bundle)
    bares, rows = [], []
    for _ in track(range(rounds), f"{images.words}, {case.precision}", console=Console(stderr=True)):
        bares.append(measure_bare(case, bundle, images, decoded, seconds))
        rows.append([row_of(*found, bares[-1]) for found in measure_commands(case, images, peers, scratch)])
    middle = Bare(
        statistics.median(bare.runtime for bare in bares),
        max(bares, key=lambda bare: bare.runtime).layout,
        statistics.median(bare.decoding for bare in bares),
        statistics.median(bare.pillow for bare in bares),
    )
    return {
        "bundle": f"{bundle.manifest.name}:{bundle.manifest.version}",
        "precision": case.precision,
        "digest": bundle.manifest.sha256[graph_files(case.precision)[0]],
        "images": images.words,
        "cores": cores(),
        "rounds": rounds,
        "runtime_per_second": round(middle.runtime, 1),
        "runtime_layout": str(middle.layout),
        "decoding_per_second": round(middle.decoding, 1),
        "pillow_per_second": round(middle.pillow, 1),
        "both_per_second": round(middle.both, 1),
        "limit": middle.limit,
        "rows": [unless_refused(of_rounds) for of_rounds in zip(*rows, strict=True)],
    }


def decode_some(images: ImageSet, bundle: Bundle) -> NDArray[np.uint8]:
    """As many as the bare graph runs over, (N, channels, height, width), N whole batches."""
    paths = images.paths()[:IN_MEMORY]
    decoded = np.stack([read_as_served(path, bundle.manifest.input) for path in paths])
    return np.resize(decoded, (-(-len(paths) // BATCH) * BATCH, *decoded.shape[1:]))


def unless_refused(rows: Sequence[Row]) -> Row:
    """The same command's rows of all rounds as one; if one was refused, that one."""
    return next((row for row in rows if "refused" in row), None) or median_row(rows)


def show(result: dict[str, Any]) -> None:
    """Print one result as a table."""
    table = Table(title=f"{result['bundle']} {result['precision']}, {result['images']}, {result['cores']} cores")
    for name in COLUMNS.values():
        table.add_column(name, justify="left" if name in ("by", "as") else "right")
    for row in result["rows"]:
        table.add_row(*(str(row.get(key, "")) for key in COLUMNS))
    bare = (
        f"bare images/s: runtime {result['runtime_per_second']:g} ({result['runtime_layout']} threads), "
        f"decoding {result['decoding_per_second']:g}, by Pillow alone {result['pillow_per_second']:g}; "
        f"both in turn {result['both_per_second']:g}; limit: {result['limit']}"
    )
    Console().print(table, bare, sep="\n")
    if names := result.get("names"):
        print(
            f"{names['count']:,} paths: first image after about {names['seconds_to_first_image']:g} s, "
            f"first part after {names['seconds_to_first_part']:g} s, at most {names['peak_mb']:,} MB until then"
        )


def check_peers(peers: Sequence[str]) -> None:
    """Refuse, before anything is measured, peers that cannot run.

    Raises:
        ValueError: if one is unknown or lacks what it imports.
    """
    for peer in peers:
        if peer not in PEERS:
            raise ValueError(f"--peer must be {' or '.join(PEERS)}, got {peer}")
    if "Ray Data" in peers and importlib.util.find_spec("pandas") is None:
        raise ValueError("--peer Ray Data must have pandas, which it imports, got none: pip install pandas")


def main(
    images: Annotated[int, typer.Option(min=1, help="PNGs.")] = 100_000,
    photos: Annotated[int, typer.Option(min=1, help="JPEGs.")] = 2_000,
    names: Annotated[int, typer.Option(min=0, help="Paths in a text file that is begun with; 0: none.")] = 10_000_000,
    peer: Annotated[list[str] | None, typer.Option(help="Ray Data or DataLoader; repeatable, both if unset.")] = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Measure ours alone.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the bare graph in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
    scratch: Annotated[Path, typer.Option(help="Folder for the images, which stay there.")] = Path("data/bench-batch"),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Put the figures into docs/results.json.")] = False,
) -> None:
    """Measure offline scoring against the bare graph, bare decoding, and peers."""
    from training import results  # which imports torch: not in every process that is begun

    peers = [] if no_peers else peer or list(PEERS)
    try:
        check_peers(peers)
        if record:
            results.require_project()
        sets = {"png": make_digits(scratch, images), "jpeg": make_photos(scratch, photos)}
        measured = measure(sets, names, rounds, seconds, peers, scratch)
    except (ServingError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for result in measured:
        show(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps({**results.stamp(), "command": "batch", "results": measured}, indent=2) + "\n")
    if refused := [row["refused"] for result in measured for row in result["rows"] if "refused" in row]:
        raise SystemExit("\n".join(f"error: {words}" for words in refused))
    for result in measured if record else ():
        results.record("batch", f"{result['bundle']} {result['precision']}", result)


def measure(
    sets: dict[str, ImageSet], names: int, rounds: int, seconds: float, peers: Sequence[str], scratch: Path
) -> list[dict[str, Any]]:
    """All cases, and a text file of `names` paths in the first of them."""
    measured = [measure_case(case, sets[case.images], rounds, seconds, peers, scratch) for case in CASES]
    if names:
        measured[0]["names"] = measure_names(sets["png"].paths(), names, SMALL, scratch)
    return measured
