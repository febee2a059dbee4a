"""How much memory and how many file descriptors each process of a server has, looked at over and over.

    with Watch(state, every_s=1) as watch: ...
    watch.histories[("worker", 4711)].megabytes

Memory is the resident set (RSS): unlike shares of common pages it does not move when another process comes or goes.
Prometheus asks the exporter as often as we look, so that it has something to do.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from serving.torchserve import process
from serving.torchserve.state import Server, load

ROLES = ("java", "worker", "keeper", "exporter")
WORKER = "model_service_worker.py"  # in a worker's command line
MEGABYTE = 1e6
_SCRAPE_TIMEOUT_S = 10


@dataclass
class History:
    """What one process had, at each look.

    Attributes:
        role: of the process: one of `ROLES`.
        pid: its number.
        times: by `time.monotonic`.
        megabytes: resident.
        descriptors: open files, sockets and the like.
    """

    role: str
    pid: int
    times: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, one: psutil.Process) -> None:
        """Note what it has now; nothing if it has ended."""
        try:
            with one.oneshot():
                memory, descriptors = one.memory_info().rss / MEGABYTE, one.num_fds()
        except psutil.Error:
            return
        self.times.append(time.monotonic())
        self.megabytes.append(memory)
        self.descriptors.append(descriptors)


class Watch:
    """Looks at all processes of whatever server runs in a state folder, until the block ends.

    Args:
        state: the folder.
        every_s: time between two looks.
    """

    def __init__(self, state: Path, every_s: float) -> None:
        self.histories: dict[tuple[str, int], History] = {}
        self._state, self._every_s = state, every_s
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _watch(self) -> None:
        try:
            while not self._ended.wait(self._every_s):
                if (server := load(self._state)) is not None:
                    self._look(server)
        except Exception as exc:
            self._error = exc

    def _look(self, server: Server) -> None:
        for role, one in processes(server):
            self.histories.setdefault((role, one.pid), History(role, one.pid)).look(one)
        with suppress(httpx.HTTPError):  # it is down, or begun again
            httpx.get(server.metrics_url, timeout=_SCRAPE_TIMEOUT_S, trust_env=False)


def processes(server: Server) -> Iterator[tuple[str, psutil.Process]]:
    """The live processes of a server, each with its role."""
    for leader, own, other in ((server.java, "java", "worker"), (server.keeper, "keeper", "exporter")):
        for one in process.members(leader):
            if one.pid == leader.pid:
                yield own, one
            elif other != "worker" or _is_worker(one):
                yield other, one


def _is_worker(one: psutil.Process) -> bool:
    """Whether it is more than what Java starts on the way to a worker."""
    try:
        return any(word.endswith(WORKER) for word in one.cmdline())
    except psutil.Error:
        return False
