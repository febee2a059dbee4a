"""A peer's server as it runs: started, waited for, ended with everything that it has begun.

    with running(peer, launch, image, timeout_s=60) as server:
        load = wrk.ask(server.url, …)

Every process of it is told by a variable in its environment, so that none outlives the block, wherever it went.
"""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import psutil

from load_tests.peers.peer import Launch, Peer

ROOT = Path(__file__).resolve().parents[2]
MARK = "PEER_SCRATCH"  # in the environment of every process of a peer
LOG = "peer.log"
LOG_LINES = 25
PORTS = 6  # in a row, that a server may take
END_S = 15.0  # that a server has to end by itself
POLL_S = 0.02
ANSWER_S = 10.0  # that a single answer may take


class PeerError(RuntimeError):
    """A peer that does not start, dies or answers otherwise; with the end of its log."""


@dataclass(frozen=True)
class Server:
    """A peer that answers.

    Attributes:
        base: of its URLs.
        path: that images are posted to.
        pid: of the process that was started.
        log: file of its output.
        seconds_to_ready: from its start to its first answer.
    """

    base: str
    path: str
    pid: int
    log: Path
    seconds_to_ready: float = 0.0

    @property
    def url(self) -> str:
        """That images are posted to."""
        return self.base + self.path

    def ask(self, peer: Peer, image: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to an image."""
        return self.request("POST", self.path, *peer.wrap(image))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[int, bytes]:
        """Status and body of any answer.

        Raises:
            OSError: if there is none.
        """
        with closing(http.client.HTTPConnection(urlsplit(self.base).netloc, timeout=ANSWER_S)) as connection:
            try:
                connection.request(method, path, body, dict(headers))
                response = connection.getresponse()
                return response.status, response.read()
            except http.client.HTTPException as error:
                raise OSError(f"{type(error).__name__}: {error}") from error

    def require_alive(self) -> None:
        """Refuse to go on with a server whose first process has ended.

        Raises:
            PeerError: if it has.
        """
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
                return
        raise PeerError(f"the server must stay up, got its end; its log:\n{tail(self.log)}")


@contextmanager
def running(peer: Peer, launch: Launch, image: bytes, timeout_s: float) -> Iterator[Server]:
    """Start a peer, wait until it answers an image, and end it after the block.

    Raises:
        PeerError: if it has not answered by then.
    """
    log = launch.scratch / LOG
    environment = os.environ | {"PYTHONPATH": str(ROOT), MARK: str(launch.scratch), **peer.environment}
    command = peer.command(launch)
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=launch.scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        path = peer.path.format(model=launch.bundle.parent.name)
        server = Server(f"http://127.0.0.1:{launch.port}", path, process.pid, log)
        until = began + timeout_s
        _wait_for(lambda: server.request("GET", peer.ready)[0], process, until, log)
        _wait_for(lambda: server.ask(peer, image)[0], process, until, log)
        yield replace(server, seconds_to_ready=time.perf_counter() - began)
    finally:
        _end(process, launch.scratch)


def free_port() -> int:
    """The first of a few ports in a row that nobody listens on."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        if port + PORTS < 2**16 and all(map(_is_free, range(port, port + PORTS))):
            return port


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _is_free(port: int) -> bool:
    with socket.socket() as one, suppress(OSError):
        one.bind(("127.0.0.1", port))
        return True
    return False


def _wait_for(status: Callable[[], int], process: subprocess.Popen[bytes], until: float, log: Path) -> None:
    """Ask for a status until it is 200."""
    while True:
        with suppress(OSError):
            if status() == HTTPStatus.OK:
                return
        if process.poll() is not None:
            raise PeerError(f"the server must start, got exit code {process.returncode}; its log:\n{tail(log)}")
        if time.perf_counter() > until:
            raise PeerError(f"the server must be ready in time, got no 200; its log:\n{tail(log)}")
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """Ask the first process to end, then kill what is left of all."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = [one for one in psutil.process_iter() if _is_marked(one, scratch)]
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, END_S)


def _is_marked(process: psutil.Process, scratch: Path) -> bool:
    with suppress(psutil.Error):
        return process.environ().get(MARK) == str(scratch)
    return False
