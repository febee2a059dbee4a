"""Clients that keep a connection and never end their request: some say nothing more, some a byte now and then.

with hanging_clients(server.url, "mnist-mda", 40) as clients: ...
"""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

TRICKLE_S = 0.5
BODY_BYTES = 100_000
CONNECT_S = 10


@dataclass
class HangingClient:
    """One connection.

    Attributes:
        connection: on which a part of a request was sent.
        trickles: whether more of it follows, a byte now and then.
        is_cut: whether sending has failed.
    """

    connection: socket.socket
    trickles: bool
    is_cut: bool = False

    def trickle(self) -> None:
        """Send one more byte."""
        try:
            self.connection.send(b"x")
        except OSError:
            self.is_cut = True

    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        try:
            return self.is_cut or self.connection.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


@contextmanager
def hanging_clients(url: str, model: str, count: int) -> Iterator[Sequence[HangingClient]]:
    """Connections that hang until the block ends: half of them in the head of a request, half in its body."""
    place = urlsplit(url)
    head = f"POST /predictions/{model} HTTP/1.1\r\nHost: {place.netloc}\r\n".encode()
    begun = (head + b"X-Slow: ", head + b"Content-Length: %d\r\n\r\n" % BODY_BYTES + b"x")
    clients: list[HangingClient] = []
    ended = threading.Event()
    trickling = threading.Thread(target=_trickle, args=(clients, ended), daemon=True)
    try:
        for number in range(count):
            connection = socket.create_connection((place.hostname or "", place.port or 80), timeout=CONNECT_S)
            clients.append(HangingClient(connection, trickles=number % 4 > 1))
            connection.sendall(begun[number % 2])
            connection.setblocking(False)
        trickling.start()
        yield clients
    finally:
        ended.set()
        if trickling.ident is not None:
            trickling.join()
        for client in clients:
            client.connection.close()


def _trickle(clients: Sequence[HangingClient], ended: threading.Event) -> None:
    while not ended.wait(TRICKLE_S):
        for client in clients:
            if client.trickles:
                client.trickle()
