"""The heartbeat of a process: what a stopped one, a stuck one and one that is gone look like to another."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, until

from serving.torchserve.heartbeat import Heartbeat, forget_heartbeat, hung

TIMEOUT_S = 1.0
WORKER = """
import sys
from pathlib import Path
from serving.torchserve.heartbeat import Heartbeat
heartbeat = Heartbeat(Path(sys.argv[1]), hung_s=float(sys.argv[2]), beat_s=0.05)
print("begun", flush=True)
for _ in sys.stdin:
    with heartbeat.at_work():
        print("at work", flush=True)
        sys.stdin.readline()
    print("done", flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Begin a process with a heartbeat, which takes a batch at each odd line and is done with it at the next."""
    begun = []

    def begin(hung_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(hung_s)]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
        assert said(begun[-1]) == "begun"
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def said(worker: subprocess.Popen[str], line: str | None = None) -> str:
    """What the worker says next, to a line if one is given."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if line is not None:
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()
    return worker.stdout.readline().strip()


def test_a_process_is_hung_while_it_is_stopped(
    worker: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    pid = worker(60).pid

    assert hung(tmp_path, TIMEOUT_S) == {}
    os.kill(pid, signal.SIGSTOP)
    until(lambda: hung(tmp_path, TIMEOUT_S))
    assert set(hung(tmp_path, TIMEOUT_S)) == {pid}
    assert hung(tmp_path, TIMEOUT_S)[pid] > TIMEOUT_S
    os.kill(pid, signal.SIGCONT)
    until(lambda: not hung(tmp_path, TIMEOUT_S))


def test_a_process_is_hung_while_a_batch_is_in_its_hands_for_too_long(
    worker: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = worker(0.2)

    assert said(process, "a batch") == "at work"
    until(lambda: process.pid in hung(tmp_path, TIMEOUT_S))
    assert said(process, "its end") == "done"
    until(lambda: not hung(tmp_path, TIMEOUT_S))


def test_one_that_works_for_a_shorter_time_goes_on_beating(
    worker: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = worker(60)
    assert said(process, "a batch") == "at work"
    first = (tmp_path / str(process.pid)).read_bytes()

    until(lambda: (tmp_path / str(process.pid)).read_bytes() != first)
    assert hung(tmp_path, TIMEOUT_S) == {}


def test_one_that_is_gone_is_hung_until_it_is_forgotten(
    worker: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = worker(60)
    process.kill()

    until(lambda: process.pid in hung(tmp_path, TIMEOUT_S))
    forget_heartbeat(tmp_path, process.pid)
    forget_heartbeat(tmp_path, process.pid)
    assert list(tmp_path.iterdir()) == []
    assert hung(tmp_path, TIMEOUT_S) == {}


def test_only_files_named_by_processes_count(tmp_path: Path) -> None:
    (tmp_path / "1.partial").write_bytes(b"")

    assert hung(tmp_path) == {}
    assert hung(tmp_path / "missing") == {}


def test_a_process_without_a_server_has_none() -> None:
    with Heartbeat(None).at_work():
        pass
