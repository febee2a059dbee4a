"""The server's processes, in two groups: Java leads one, with the workers in it; the keeper leads that of the exporter.

The processes of a group end together.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from serving.errors import ServerError

SERVER_CLASS = "org.pytorch.serve.ModelServer"
KEEPER, EXPORTER = "serving.torchserve.keeper", "serving.torchserve.exporter"
OURS = ("model_service_worker.py", "jspawnhelper", KEEPER, EXPORTER)  # second, what Java starts on the way to a worker
_POLL_S = 0.1
KILL_TIMEOUT_S = 10.0


def spawn(command: Sequence[str], environment: Mapping[str, str], cwd: Path, output: Path) -> int:
    """Start a command in a session of its own, so that a terminal's Ctrl-C does not reach it.

    Returns:
        Its process id, which is its process group's too.
    """
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
    return process.pid


def is_running(pid: int) -> bool:
    """Whether `pid` is a live TorchServe or keeper, rather than nothing or another program that has got its number."""
    _reap(pid)
    try:
        return _is_member(psutil.Process(pid), pid)
    except psutil.NoSuchProcess:
        return False


def members(pid: int) -> list[psutil.Process]:
    """The live processes of the group that `pid` leads or has led: Java and the workers, or keeper and exporter."""
    _reap(pid)
    return [process for process in psutil.process_iter() if _is_member(process, pid)]


def end(pid: int, grace_s: float) -> None:
    """End a group: ask its leader, wait up to `grace_s` seconds for it, then kill whatever is left.

    Raises:
        ServerError: if something survives even that.
    """
    if is_running(pid) and grace_s > 0:
        os.kill(pid, signal.SIGTERM)
        _wait(lambda: not is_running(pid), grace_s)
    if members(pid):
        os.killpg(pid, signal.SIGKILL)
        if not _wait(lambda: not members(pid), KILL_TIMEOUT_S):
            left = ", ".join(str(process.pid) for process in members(pid))
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
