"""A server's models on a terminal: what each is computed in, whether its workers are ready, what it lacks."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from serving.speedup import WORTHWHILE, told
from serving.torchserve.archive import Archive, read_manifest, read_settings
from serving.torchserve.management import ModelStatus
from serving.torchserve.state import ARCHIVES, Server


def print_status(statuses: Sequence[ModelStatus], server: Server, state: Path) -> None:
    """Print a row for each version of each model, what some lack, and a line for each that is better in float32."""
    table = Table(Column("model", overflow="fold"), "version", "precision", "workers", "state")
    for one in statuses:
        table.add_row(one.name, one.version, _precision(one, server, state), f"{one.ready}/{one.workers}", _word(one))
    Console().print(table)
    if lacking := [f"{one.name} {one.version}" for one in statuses if _lacks_held_out(one, state)]:
        print(
            f"Without held-out images: {', '.join(lacking)}. Their answers have no typicality, no prediction sets and "
            "no flags; export them anew from recipes that hold images out ([calibration] share).",
            flush=True,
        )
    for name, speedup in server.speedups.items():
        if speedup < WORTHWHILE:
            print_speedup(name, speedup)


def print_speedup(name: str, speedup: float) -> None:
    """Print what int8 brings to a model, named `name:version`."""
    print(told(name.partition(":")[0], speedup), flush=True)


def _precision(status: ModelStatus, server: Server, state: Path) -> str:
    if not status.version.isdecimal():
        return "-"  # the server does not answer
    model = Archive(status.name, int(status.version))
    try:
        precision, speedup = read_settings(state / ARCHIVES / model.file).precision, server.speedups.get(str(model))
    except FileNotFoundError:
        return "-"  # the version was taken away a moment ago
    return precision if speedup is None else f"{precision}, {speedup:.1f} x float32"


def _lacks_held_out(status: ModelStatus, state: Path) -> bool:
    """Whether a model cannot tell how typical an image is."""
    if not status.version.isdecimal():
        return False  # the server does not answer
    try:
        return read_manifest(state / ARCHIVES / Archive(status.name, int(status.version)).file).held_out is None
    except FileNotFoundError:
        return False  # the version was taken away a moment ago


def _word(status: ModelStatus) -> str:
    if status.draining:
        return "draining"
    return "ready" if status.is_ready else "not ready"
