"""Offline scoring by whole commands, ours and those of peers: how fast, with how much memory, and with which labels."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from load_tests.memory import PeakMemory
from serving.bundle import Precision

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1e6
FEW_KEYS = 3  # that a refusal names
OUT = "answers.parquet"

MakeCommand = Callable[[Path, Path, Path], Sequence[str]]  # of the images, the bundle and the place of the table
Labels = Mapping[str, str | None]


class WrongLabels(ValueError):
    """A command's labels are not ours, so its speed says nothing."""


@dataclass(frozen=True)
class Ran:
    """One run of a command.

    Attributes:
        images: how many it says it has scored.
        seconds: from the first image to the written table, as it says; the whole command's if it says nothing.
        command_seconds: from start to end of the command.
        peak_mb: of all its processes together, see `load_tests/memory.py`.
        labels: by key.
    """

    images: int
    seconds: float
    command_seconds: float
    peak_mb: float
    labels: Labels


def score_command(source: Path, bundle: Path, out: Path, precision: Precision = "float32") -> list[str]:
    """Our own."""
    options = ["--bundle", str(bundle), "--out", str(out), "--precision", precision, "--quiet", "--json"]
    return [sys.executable, "-m", "serving", "score", str(source), *options]


def _peer(module: str) -> MakeCommand:
    def command(source: Path, bundle: Path, out: Path) -> list[str]:
        words = ["-m", f"load_tests.offline.{module}", str(source), "--bundle", str(bundle), "--out", str(out)]
        return [sys.executable, *words]

    return command


PEERS: dict[str, MakeCommand] = {"Ray Data": _peer("peer_ray"), "DataLoader": _peer("peer_dataloader")}


def run(command: Sequence[str], table: Path) -> Ran:
    """Run a command that scores into `table`, a Parquet file or a folder of them, which is removed afterwards.

    Raises:
        RuntimeError: if the command fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with PeakMemory(process.pid) as peak:
        output, errors = process.communicate()
    took = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} must succeed, got exit code {process.returncode}:\n{errors[-4000:]}")
    said, labels = summary_of(output), labels_of(table)
    shutil.rmtree(table) if table.is_dir() else table.unlink()
    seconds = said.get("seconds", took)
    return Ran(said.get("images", len(labels)), seconds, took, peak.bytes / MEGABYTE, labels)


def summary_of(output: str) -> dict[str, Any]:
    """The JSON object in the last line of what a command has printed; empty if there is none."""
    try:
        said = json.loads(output.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def labels_of(table: Path) -> dict[str, str | None]:
    """The label of each image, by its key."""
    columns = pq.read_table(table, columns=["key", "label"])
    return dict(zip(columns["key"].to_pylist(), columns["label"].to_pylist(), strict=True))


def check_labels(peer: str, labels: Labels, ours: Labels) -> None:
    """Refuse a peer that answers others than ours.

    Raises:
        WrongLabels: naming a few of the images.
    """
    others = sorted(key for key in {*labels, *ours} if labels.get(key) != ours.get(key) or key not in labels)
    if others:
        few = ", ".join(f"{key} {labels.get(key)!r} for {ours.get(key)!r}" for key in others[:FEW_KEYS])
        raise WrongLabels(f"{peer} must give the labels that score gives, got {len(others):,} others: {few}")
