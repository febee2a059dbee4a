"""Scoring offline as a command that is killed, interrupted, or has no room: the same command goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT, SIZE, encoded, serving, until

from serving.batch.engine import EngineError, Layout
from serving.batch.local import LocalEngine
from serving.batch.options import ScoreOptions
from serving.batch.score import score
from serving.batch.source import Item, Shard, Source
from serving.batch.sources import open_source

IMAGES, SHARD = 1500, 15
OPTIONS = ("--batch-size", 4, "--shard-images", SHARD, "--return", "features", "--quiet")

Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Different gray images, one of them broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(2)
    for number in range(IMAGES):
        (root / f"{number:04}.png").write_bytes(encoded(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)))
    (root / "0700.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def undisturbed(folder: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run that nothing has happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "answers.parquet"
    serving("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--allow-errors", check=True)
    return out.read_bytes()


def parts(out: Path) -> int:
    return len(list(out.with_name(f"{out.name}.parts").glob("part-*")))


def children(command: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(command.pid).children(recursive=True)


def workers(command: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [one for one in children(command) if "spawn_main" in " ".join(one.cmdline())]


def test_ten_kills_change_nothing(
    folder: Path, bundle_dir: Path, undisturbed: bytes, tmp_path: Path, begin: Begin
) -> None:
    out = tmp_path / "answers.parquet"
    rng = random.Random(14)
    for number in range(10):
        command = begin("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--allow-errors")
        wanted = min(parts(out) + rng.randrange(0, 12), IMAGES // SHARD - 1)
        until(lambda command=command, wanted=wanted: command.poll() is not None or parts(out) >= wanted)
        family = children(command)
        command.send_signal(signal.SIGKILL)
        command.communicate()

        psutil.wait_procs(family, timeout=60)
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family), number
        assert not out.exists()
    last = serving("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS)

    assert last.returncode == 3
    assert "were there already" in last.stdout
    assert out.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["answers.parquet"]


def test_a_killed_worker_is_replaced(
    folder: Path, bundle_dir: Path, undisturbed: bytes, tmp_path: Path, begin: Begin
) -> None:
    out = tmp_path / "answers.parquet"
    command = begin("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--allow-errors")
    until(lambda: parts(out) >= 3)
    workers(command)[0].send_signal(signal.SIGKILL)
    _, errors = command.communicate(timeout=120)

    assert command.returncode == 0, errors
    assert out.read_bytes() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_tidily(
    number: int, folder: Path, bundle_dir: Path, undisturbed: bytes, tmp_path: Path, begin: Begin
) -> None:
    out = tmp_path / "answers.parquet"
    command = begin("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS)
    until(lambda: parts(out) >= 3)
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)

    assert command.returncode == 130
    assert errors == "stopped: what is done is kept; the same command goes on\n"
    serving("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--allow-errors", check=True)
    assert out.read_bytes() == undisturbed


def test_workers_can_be_nice(folder: Path, bundle_dir: Path, tmp_path: Path, begin: Begin) -> None:
    out = tmp_path / "answers.parquet"
    command = begin("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--nice")
    until(lambda: parts(out) >= 1)

    assert {one.nice() for one in workers(command)} == {19}
    assert {os.sched_getscheduler(one.pid) for one in workers(command)} == {os.SCHED_IDLE}


def test_two_at_a_time_are_refused(folder: Path, bundle_dir: Path, tmp_path: Path, begin: Begin) -> None:
    out = tmp_path / "answers.parquet"
    command = begin("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS, "--allow-errors")
    until(lambda: parts(out) >= 1)
    os.kill(command.pid, signal.SIGSTOP)
    second = serving("score", folder, "--bundle", bundle_dir, "--out", out, *OPTIONS)
    os.kill(command.pid, signal.SIGCONT)

    assert second.returncode == 1
    assert "one command at a time must change" in second.stderr
    assert command.wait(timeout=120) == 0


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_keeps_what_is_done(folder: Path, bundle_dir: Path, undisturbed: bytes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [
        f"{sys.executable} -m serving score {folder} --bundle {bundle_dir} --out {disk}/answers.parquet",
        *map(str, OPTIONS),
        "--allow-errors",
    ]
    script = f"""
        mount -t tmpfs -o size=300k none {disk}
        {" ".join(words)}; echo "exit $?"; ls {disk}/answers.parquet.parts | grep -c part-
        mount -o remount,size=20m {disk}
        {" ".join(words)}; echo "exit $?"; cp {disk}/answers.parquet {tmp_path}/kept.parquet
    """
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert "must be writable, got" in result.stderr
    assert "No space left on device" in result.stderr
    first, kept, summary, second = result.stdout.splitlines()
    assert (first, second) == ("exit 1", "exit 0")
    assert int(kept) > 0
    assert "were there already" in summary
    assert (tmp_path / "kept.parquet").read_bytes() == undisturbed


@dataclass(frozen=True)
class Deadly(Source):
    """A folder whose reader is killed over one of its images, as it is where there is too little memory."""

    folder: str

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "deadly"}

    def shards(self, images: int) -> Iterator[Shard]:
        yield from open_source(self.folder).shards(images)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        for item in open_source(self.folder).read(shard, max_bytes):
            if item.key == "0025.png":
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def test_a_shard_that_kills_its_workers_is_named(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    options, out = ScoreOptions(batch_size=4, shard_images=10), str(tmp_path / "parts")

    with pytest.raises(EngineError, match=r"got one killed 3 times over part-0000002\.parquet"):
        score(Deadly(str(folder)), bundle_dir, out, options, engine=LocalEngine(Layout(1)))
    assert {"part-0000000.parquet", "part-0000001.parquet"} <= {path.name for path in Path(out).iterdir()}
