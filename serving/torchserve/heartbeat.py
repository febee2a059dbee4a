"""A worker's heartbeat: a file that holds when it last said that it works, by a clock that nobody sets.

A worker says so about once a second, but not while a batch has been in its hands for too long. So the age of what it
said last tells of one that is stopped, deadlocked or stuck in a batch. The time is written through shared memory, which
neither a full disk nor a reader can hold up.
"""

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEATS = "heartbeats"  # in the state folder: a file per process, named by its id
HUNG_S = 10.0  # many times what a batch may take
BEAT_TIMEOUT_S = 5.0
_BEAT_S = 1.0
_TIME = struct.Struct("d")  # seconds, as time.monotonic counts them for all processes of a machine


class Heartbeat:
    """That of this process; it begins at once and goes on to the end.

    Args:
        folder: of the server's heartbeats; None is a process that nobody listens to.
        hung_s: how long a batch may be in hand.
        beat_s: time between two beats.
    """

    def __init__(self, folder: Path | None, hung_s: float = HUNG_S, beat_s: float = _BEAT_S) -> None:
        self._hung_s, self._beat_s = hung_s, beat_s
        self._since: float | None = None  # when the batch in hand came
        if folder is not None:
            threading.Thread(target=self._beat, args=(_mapped(folder),), daemon=True).start()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold a batch in hand."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _beat(self, memory: mmap.mmap) -> None:
        while True:
            since, now = self._since, time.monotonic()
            if since is None or now - since < self._hung_s:
                _TIME.pack_into(memory, 0, now)
            time.sleep(self._beat_s)


def hung(folder: Path, timeout_s: float = BEAT_TIMEOUT_S) -> dict[int, float]:
    """The processes that have said nothing for longer than `timeout_s`, and for how long, in seconds.

    A process without a file is not among them: it has just begun.
    """
    ages = {}
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was forgotten a moment ago
            if file.name.isdecimal():
                ages[int(file.name)] = time.monotonic() - _TIME.unpack(file.read_bytes())[0]
    return {pid: age for pid, age in ages.items() if age > timeout_s}


def forget_heartbeat(folder: Path, pid: int) -> None:
    """Remove what a process that has ended leaves."""
    (folder / str(pid)).unlink(missing_ok=True)


def _mapped(folder: Path) -> mmap.mmap:
    """The file of this process, with a first beat in it."""
    file = folder / str(os.getpid())
    partial = file.with_suffix(".partial")
    partial.write_bytes(_TIME.pack(time.monotonic()))
    with partial.open("r+b") as stream:
        memory = mmap.mmap(stream.fileno(), _TIME.size)
    partial.replace(file)
    return memory
