"""The process that sends an open-loop load, as cheaply as Python can: uvloop, and a raw protocol with a parser in C.

    python -m load_tests.open_loop.generator < plan > sent     # both are pickles; load_tests/open_loop/load.py runs it

A request is encoded beforehand, and an answer that has come before is not kept again. Connections stay open. When none
is free another one is opened, up to a bound; beyond it requests wait, and are sent as soon as one is free. The next
request is woken for by a timer signal: timers of event loops know whole milliseconds only.
"""

import asyncio
import gc
import pickle
import signal
import sys
import time
from array import array
from collections import deque
from typing import cast

import httptools
import uvloop

from load_tests.open_loop.plan import Outcome, Plan, Sent

LEAD_S = 0.05  # before the load starts
IDLE_S = 1.0  # after which a connection is not used again: servers close those that have been idle for some seconds
LOOK_S = 0.1  # between looks for requests that have taken too long
NONE = -1


class Connection(asyncio.Protocol):
    """A connection, on which at most one request is on its way."""

    def __init__(self, sender: "Sender", number: int) -> None:
        self.sender, self.number = sender, number  # of the request on its way, NONE if there is none
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.free_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there: send what it was opened for."""
        self.transport = cast(asyncio.Transport, transport)
        self.sender.opened(self)
        self.send(self.number)

    def send(self, number: int) -> None:
        """Send a request."""
        self.number, self.body = number, b""
        self.sender.sent_s[number] = self.sender.now()
        self.transport.write(self.sender.plan.encoded[self.sender.plan.drawn[number]])

    def data_received(self, data: bytes) -> None:
        """Some of the answer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.give_up(f"the answer is not HTTP: {error}")

    def on_body(self, part: bytes) -> None:
        """Some of its body, by the parser."""
        self.body = self.body + part if self.body else part

    def on_message_complete(self) -> None:
        """All of it, by the parser."""
        if self.number == NONE:  # nobody has asked
            self.transport.abort()
            return
        self.sender.note(self.number, self.parser.get_status_code(), self.body)
        self.number = NONE
        if self.parser.should_keep_alive() and not self.transport.get_write_buffer_size():
            self.sender.release(self)
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by whomever."""
        self.give_up(f"the connection was cut: {error or 'closed by the server'}")
        self.sender.lost(self)

    def give_up(self, reason: str) -> None:
        """Fail the request on its way, if there is one, and close."""
        if self.number != NONE:
            self.sender.note(self.number, reason)
            self.number = NONE
            self.transport.abort()


class Sender:
    """Sends a plan and notes what comes of it."""

    def __init__(self, plan: Plan) -> None:
        count = len(plan.due_s)
        self.plan, self.began = plan, 0.0
        self.sent_s, self.done_s = array("d", bytes(8 * count)), array("d", bytes(8 * count))
        self.waited, self.outcome = bytearray(count), array("q", bytes(8 * count))
        self.outcomes: dict[Outcome, int] = {}
        self.next, self.left = 0, count  # to be sent, to be answered
        self.waiting: deque[int] = deque()
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self.connecting: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> Sent:
        """Send all; returns when all is answered or given up."""
        self.loop, self.finished = asyncio.get_running_loop(), asyncio.Event()
        self.loop.add_signal_handler(signal.SIGALRM, self.send_due)
        self.began, cpu = time.monotonic() + LEAD_S, time.process_time()
        self.send_due()
        self.look()
        if self.left:
            await self.finished.wait()
        cpu_s = time.process_time() - cpu
        signal.setitimer(signal.ITIMER_REAL, 0)
        for connection in self.connections:
            connection.transport.abort()
        done = self.sent_s, self.done_s, self.waited, self.outcome
        return Sent(self.began, cpu_s, *done, list(self.outcomes))

    def now(self) -> float:
        """Seconds from the start."""
        return time.monotonic() - self.began

    def send_due(self) -> None:
        """Send what is due, and have the alarm ring for the next."""
        due_s, now = self.plan.due_s, self.now()
        while self.next < len(due_s) and due_s[self.next] <= now:
            self.start(self.next, now)
            self.next += 1
        if self.next < len(due_s):
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, due_s[self.next] - self.now()))

    def start(self, number: int, now: float) -> None:
        """Send a request over a free connection or a new one; if there may be no more, it waits."""
        while self.idle:
            connection = self.idle.pop()  # the one used last
            if now - connection.free_since < IDLE_S and not connection.transport.is_closing():
                connection.send(number)
                return
            connection.transport.close()
        if self.may_connect():
            self.connect(number)
        else:
            self.waited[number] = 1
            self.waiting.append(number)

    def may_connect(self) -> bool:
        """Whether there may be one more connection."""
        return len(self.connections) + len(self.connecting) < self.plan.connections

    def connect(self, number: int) -> None:
        """Open a connection for a request."""
        self.connecting[number] = self.loop.create_task(self._connect(number))

    async def _connect(self, number: int) -> None:
        try:
            async with asyncio.timeout(self.plan.timeout_s):
                await self.loop.create_connection(lambda: Connection(self, number), self.plan.host, self.plan.port)
        except OSError as error:
            if self.connecting.pop(number, None):
                self.sent_s[number] = self.now()
                self.note(number, f"no connection: {error or 'timed out'}")
                self.send_waiting()

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self.connecting.pop(connection.number)
        self.connections.add(connection)

    def note(self, number: int, status: int | str, body: bytes = b"") -> None:
        """A request has ended."""
        self.done_s[number] = self.now()
        self.outcome[number] = self.outcomes.setdefault((self.plan.drawn[number], status, body), len(self.outcomes))
        self.left -= 1
        if not self.left:
            self.finished.set()

    def release(self, connection: Connection) -> None:
        """A connection is free: the longest waiting request takes it."""
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            connection.free_since = self.now()
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed: there may be another one."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self.send_waiting()

    def send_waiting(self) -> None:
        """Open connections for requests that wait, as many as there may be."""
        while self.waiting and self.may_connect():
            self.connect(self.waiting.popleft())

    def look(self) -> None:
        """Give up requests that have taken too long, over and over."""
        sent_before = self.now() - self.plan.timeout_s
        for connection in list(self.connections):
            if connection.number != NONE and self.sent_s[connection.number] < sent_before:
                connection.give_up(f"no answer within {self.plan.timeout_s:g} s")
        self.loop.call_later(LOOK_S, self.look)


if __name__ == "__main__":
    sender = Sender(pickle.load(sys.stdin.buffer))
    gc.freeze()
    gc.disable()  # its pauses would be in the latencies
    sent = uvloop.run(sender.run())
    # Buffered, which sys.stdout.buffer is not if PYTHONUNBUFFERED is set: a signal would cut a write short.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        pickle.dump(sent, out)
