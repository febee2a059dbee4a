"""A client that sends one request after another over one connection, and notes how each ended."""

import http.client
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

TIMEOUT_S = 20.0
PAUSE_S = 0.01  # after a connection that was refused


class Client(threading.Thread):
    """Sends until it is told that it has finished.

    Args:
        url: where to.
        body: what.
        key: the server's.

    Attributes:
        finished: set by whoever began it.
        ends: when each request began, and its status, or `refused` (no answer began), `cut` or `hung`.
    """

    def __init__(self, url: str, body: bytes, key: str) -> None:
        super().__init__(daemon=True)
        self._address, self._path = urlsplit(url).netloc, urlsplit(url).path
        self._body, self._headers = body, {"Authorization": f"Bearer {key}"}
        self.finished = threading.Event()
        self.ends: list[tuple[float, int | str]] = []

    def run(self) -> None:
        """Send, one after another."""
        with closing(http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)) as connection:
            while not self.finished.is_set():
                began = time.monotonic()
                self.ends.append((began, self._ask(connection)))

    def _ask(self, connection: http.client.HTTPConnection) -> int | str:
        try:
            connection.request("POST", self._path, self._body, self._headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            self.finished.wait(PAUSE_S)
            return _end(exc)
        return response.status


def _end(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "hung"
    return "cut" if isinstance(error, http.client.IncompleteRead) else "refused"
