"""How much memory a command takes at most, all its processes together.

    with PeakMemory(process.pid) as peak: ...
    peak.bytes

The sum of the processes' proportional set sizes (PSS), in which a page that several of them share counts once in all.
"""

import threading
from types import TracebackType
from typing import Self

import psutil

EVERY_S = 0.25


class PeakMemory:
    """Looks at a process and all its descendants a few times a second, until the block ends."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, tree_bytes(self._process))


def tree_bytes(process: psutil.Process) -> int:
    """The PSS of a process and its descendants, less those that end meanwhile."""
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_pss, tree))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0
