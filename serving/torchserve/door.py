"""The workers' door: open while the server takes requests, closed by the launcher when it drains (see `drain.py`).

It lies in the server's private folder, beside the mark that the server is about to stop. To close it and to set that
mark takes no space on a disk, which may be full.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.lock import taken

_MARK = "draining"


class Door:
    """What every batch of a worker passes on its way in; it is open while its file holds something.

    A shared lock on that file while a batch is answered tells the launcher to wait. The file stays open, as opening it
    for each batch would cost more than all the rest.

    Args:
        tmp: the server's private folder; None is a door that nobody closes.
    """

    def __init__(self, tmp: Path | None) -> None:
        self._file = None if tmp is None else os.open(_file_of(tmp), os.O_RDONLY)

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Hold the door for one batch.

        Yields:
            Whether it is open; if not, the batch must be refused.
        """
        if self._file is None:
            yield True
            return
        fcntl.flock(self._file, fcntl.LOCK_SH)  # before the look at its size, so that none slips in between
        try:
            yield os.fstat(self._file).st_size > 0
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def open_door(tmp: Path) -> None:
    """Let batches in; for a server that is about to start."""
    _file_of(tmp).write_bytes(b"open")


def close_door(tmp: Path) -> None:
    """Refuse each batch that comes from now on."""
    os.truncate(_file_of(tmp), 0)


def left_door(tmp: Path, deadline: float) -> bool:
    """Wait for the batches that were let in, until `deadline` by `time.monotonic`; whether all of them are done."""
    with _file_of(tmp).open("rb") as lock:
        return taken(lock.fileno(), deadline)


def mark_draining(tmp: Path) -> None:
    """Say that the server is about to stop and should get no more requests."""
    (tmp / _MARK).touch()


def is_draining(tmp: Path) -> bool:
    """Whether the server is about to stop."""
    return (tmp / _MARK).exists()


def _file_of(tmp: Path) -> Path:
    return tmp / "door"
