"""How a worker receives what TorchServe sends, and what it does before it waits for more.

TorchServe's worker reads a request field by field, a system call each, two dozen of them. Here what has come is
received at once. And when a worker is about to wait, its answers are on their way: then it counts and logs them.
"""

import importlib
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from socket import socket
from typing import Any

AHEAD_BYTES = 64 * 1024


class Later(Executor):
    """Runs what is submitted when it is told to, in the thread that tells it."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Keep a call for later."""
        future: Future[Any] = Future()
        self._calls.append((future, lambda: call(*args, **kwargs)))
        return future

    def run(self) -> None:
        """Run all that is kept, in order."""
        while self._calls:
            future, call = self._calls.popleft()
            try:
                future.set_result(call())
            except Exception as exc:
                future.set_exception(exc)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run what is left, unless it is to be cancelled."""
        if cancel_futures:
            self._calls.clear()
        self.run()


class Receiver:
    """Reads a connection so many bytes at a time, as TorchServe's worker does.

    Args:
        before_waiting: called when nothing more has come.
    """

    def __init__(self, before_waiting: Callable[[], None] = lambda: None) -> None:
        self._before_waiting = before_waiting
        self._buffer = bytearray(AHEAD_BYTES)
        self._start = self._end = 0  # of what has come and was not handed out

    def __call__(self, connection: socket, length: int) -> bytearray:
        """So many bytes; the worker ends where the server does."""
        if length > self._end - self._start:
            return self._receive(connection, length)
        self._start += length
        return self._buffer[self._start - length : self._start]

    def _receive(self, connection: socket, length: int) -> bytearray:
        wanted = bytearray(length)
        rest = memoryview(wanted)
        while rest:
            if self._start == self._end:
                self._before_waiting()
                if len(rest) >= AHEAD_BYTES:  # straight to its place
                    rest = rest[_received(connection, rest) :]
                    continue
                self._start, self._end = 0, _received(connection, memoryview(self._buffer))
            count = min(len(rest), self._end - self._start)
            rest[:count] = self._buffer[self._start : self._start + count]
            self._start, rest = self._start + count, rest[count:]
        return wanted


_later = Later()
_receiver: Receiver | None = None  # of this process, if it is a worker of a TorchServe that is changed


def install() -> None:
    """Have TorchServe's worker, in this process, receive so."""
    global _receiver
    _receiver = Receiver(_later.run)
    importlib.import_module("ts.protocol.otf_message_handler")._retrieve_buffer = _receiver  # type: ignore[attr-defined]


def aside() -> Executor:
    """Where a worker does what its clients need not wait for: here, or in a stock TorchServe a thread beside it."""
    return ThreadPoolExecutor(max_workers=1) if _receiver is None else _later


def _received(connection: socket, buffer: memoryview) -> int:
    """Receive what has come into a buffer; how many bytes that is."""
    return connection.recv_into(buffer) or sys.exit(0)
