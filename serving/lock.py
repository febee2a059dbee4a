"""One command at a time changes what runs in a state folder: it holds the folder's lock, with its name in it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.errors import ServerError

LOCK = "lock"  # in the folder

_POLL_S = 0.01


@contextmanager
def locked(state: Path, command: str, wait_s: float = 0) -> Iterator[None]:
    """Hold the state folder against every other command that changes what runs there.

    Args:
        state: the folder, which must be there.
        command: which one holds it, for the others to name.
        wait_s: how long one that is under way may take to end.

    Raises:
        ServerError: if another one holds it.
    """
    file = os.open(state / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not taken(file, time.monotonic() + wait_s):
            other = os.pread(file, 100, 0).decode() or "another"
            raise ServerError(
                f"one command at a time must change {state}, got `{other}` under way: try again when it has ended"
            )
        os.ftruncate(file, 0)
        with suppress(OSError):  # a full disk keeps nobody from stopping a server
            os.pwrite(file, command.encode(), 0)
        yield
    finally:
        os.close(file)


def taken(file: int, deadline: float) -> bool:
    """Lock a file that is open alone, until `deadline` by `time.monotonic`; whether that has come about."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True
