"""The server's processes in their groups: Java leads one with the workers, the keeper one with the exporter.

A group ends together. The number of a process that has ended may become another one's, so a process is told by its
number and its start. The number of a group is no process's while the group has a member: a leader's number with another
start means that the whole group has ended.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.errors import ServerError

SERVER_CLASS = "org.pytorch.serve.ModelServer"  # in Java's command line
KEEPER, EXPORTER = "serving.torchserve.keeper", "serving.torchserve.exporter"
OURS = ("model_service_worker.py", "jspawnhelper", KEEPER, EXPORTER)  # second, what Java starts on the way to a worker
_POLL_S = 0.1
KILL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Identity:
    """A process that leads a group.

    Attributes:
        pid: its number, which is its group's too.
        started: when, in clock ticks since the machine's start, which no change of the clock moves.
    """

    pid: int
    started: int


def spawn(command: Sequence[str], environment: Mapping[str, str], cwd: Path, output: Path) -> Identity:
    """Start a command in a session of its own, so that a terminal's Ctrl-C does not reach it."""
    with output.open("ab") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives us by design; Popen would otherwise warn that nobody waited for it
    return Identity(process.pid, started(process.pid) or 0)


def started(pid: int) -> int | None:
    """When the process of this number was started, in clock ticks since the machine's start; None if there is none."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields.rpartition(")")[2].split()[19])  # the 22nd of all; the second, its name, is in parentheses


def own() -> Identity:
    """This process, if it leads a group."""
    return Identity(os.getpid(), started(os.getpid()) or 0)


def is_running(leader: Identity) -> bool:
    """Whether this very process lives."""
    _reap(leader.pid)
    try:
        return started(leader.pid) == leader.started and _is_member(psutil.Process(leader.pid), leader.pid)
    except psutil.NoSuchProcess:
        return False


def members(leader: Identity) -> list[psutil.Process]:
    """The live processes of the group that `leader` leads or has led: Java and the workers, or keeper and exporter."""
    _reap(leader.pid)
    if started(leader.pid) not in (None, leader.started):
        return []
    return [process for process in psutil.process_iter() if _is_member(process, leader.pid)]


def end(leader: Identity, grace_s: float) -> None:
    """End a group: ask its leader, wait up to `grace_s` seconds for it, then kill whatever is left.

    Raises:
        ServerError: if something survives even that.
    """
    if is_running(leader) and grace_s > 0:
        os.kill(leader.pid, signal.SIGTERM)
        _wait(lambda: not is_running(leader), grace_s)
    if members(leader):
        os.killpg(leader.pid, signal.SIGKILL)
        if not _wait(lambda: not members(leader), KILL_TIMEOUT_S):
            left = ", ".join(str(process.pid) for process in members(leader))
            raise ServerError(f"processes must end when killed, got {left} still there")


def _is_member(process: psutil.Process, group: int) -> bool:
    try:
        if os.getpgid(process.pid) != group or process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = process.cmdline()  # none for a moment, while a process turns into another program
        return not words or any(word == SERVER_CLASS or word.endswith(OURS) for word in words)
    except (psutil.Error, OSError):
        return False


def _wait(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _reap(pid: int) -> None:
    """Take the exit status of a child of ours, which would stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
