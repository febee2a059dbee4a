"""The open loop against small servers whose delays and faults are known."""

import fcntl
import http.client
import json
import math
import os
import pickle
import signal
import socketserver
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port, until

from load_tests.asked.asks import Ask
from load_tests.open_loop.load import arrivals, draws, offer
from load_tests.open_loop.offered import Offered, Sample
from load_tests.open_loop.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
ASK = Ask("image", "/", b"image")
PIPE = 65_536  # bytes that one holds


class QuietServer(ThreadingHTTPServer):
    """Many may ask it at once, and hang up before they are answered."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def http_server(answer: Callable[[bytes], tuple[int, bytes]], protocol: str = "HTTP/1.1") -> Iterator[str]:
    """A server that answers a body with what `answer` says of it, a thread a connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            status, body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def raw_server(reply: bytes, wait_s: float = 0) -> Iterator[str]:
    """A server that reads a little, waits, sends these bytes and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            time.sleep(wait_s)
            self.request.sendall(reply)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_request_is_sent_once_as_drawn_and_none_before_it_was_due() -> None:
    seen: list[bytes] = []
    asks = [Ask("odd", "/", b"odd"), Ask("even", "/", b"even")]

    with http_server(lambda body: (seen.append(body), (200, body))[1]) as url:
        offered = offer(url, asks, per_second=100, seconds=1, seed=4)

    due = arrivals(100, 1, seed=4)
    kinds = [("odd", "even")[index] for index in draws(len(due), 2, seed=4)]
    assert [sample.due_s for sample in offered.samples] == due
    assert [sample.kind for sample in offered.samples] == kinds
    assert sorted(seen) == sorted(kind.encode() for kind in kinds)
    assert all(0 <= sample.sent_late_ms <= sample.latency_ms for sample in offered.samples)
    assert (offered.failed, offered.overdue, offered.per_second) == (0, 0, len(due))
    assert 0 < offered.generator_cpu < 1


def test_draws_are_seeded_and_use_every_request_alike() -> None:
    drawn = draws(3000, 3, seed=1)

    assert drawn == draws(3000, 3, seed=1) != draws(3000, 3, seed=2)
    assert np.bincount(drawn) == pytest.approx([1000] * 3, abs=110)  # four standard deviations


def test_latency_is_at_least_what_the_server_takes() -> None:
    with http_server(lambda _: (time.sleep(0.1), (200, b""))[1]) as url:
        offered = offer(url, ASK, per_second=50, seconds=0.5)

    assert min(offered.latencies_ms) >= 100


def test_requests_that_find_no_free_connection_are_overdue_and_sent_later() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def answer(_: bytes) -> tuple[int, bytes]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return 200, b""

    with http_server(answer) as url:
        offered = offer(url, ASK, per_second=200, seconds=0.5, seed=1, connections=4)

    due = arrivals(200, 0.5, seed=1)
    assert (len(offered.samples), offered.failed, most) == (len(due), 0, 4)
    assert 0 < offered.overdue < len(due)
    last = max(sample.due_s + sample.latency_ms / 1000 for sample in offered.samples)
    assert last >= 0.05 * len(due) / 4  # four connections need that long for all
    assert offered.percentile(100) >= 1000 * (0.05 * len(due) / 4 - due[-1])
    assert offered.goodput < 0.97 * offered.per_second


@contextmanager
def stalling_once(at: int, for_s: float) -> Iterator[str]:
    """A server that answers one request at a time, and takes long over one of them."""
    asked, lock = [0], threading.Lock()

    def answer(_: bytes) -> tuple[int, bytes]:
        with lock:
            asked[0] += 1
            if asked[0] == at:
                time.sleep(for_s)
        return 200, b""

    with http_server(answer) as url:
        yield url


def closed_loop(url: str, requests: int) -> list[float]:
    """Latencies in milliseconds of a client that asks again when it is answered."""
    latencies = []
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection:
        for _ in range(requests):
            began = time.perf_counter()
            connection.request("POST", "/", b"image")
            connection.getresponse().read()
            latencies.append(1000 * (time.perf_counter() - began))
    return latencies


def test_a_stall_is_in_the_p99_of_the_open_loop_and_not_in_that_of_a_closed_one() -> None:
    with stalling_once(at=50, for_s=0.6) as url:
        closed = closed_loop(url, requests=400)
    with stalling_once(at=50, for_s=0.6) as url:
        offered = offer(url, ASK, per_second=100, seconds=3)

    assert max(closed) >= 600  # it was there
    assert float(np.percentile(closed, 99)) < 300 <= offered.percentile(99)
    assert sum(latency >= 300 for latency in offered.latencies_ms) >= 10  # all that were due meanwhile


def test_nobody_there_is_a_failure_with_a_reason() -> None:
    offered = offer(f"http://127.0.0.1:{free_port()}", ASK, per_second=50, seconds=0.5)

    assert offered.failed == len(offered.samples) == len(arrivals(50, 0.5, seed=0))
    assert all(words.startswith("no connection: ") for words in offered.problems)
    assert (offered.latencies_ms, offered.goodput, offered.percentile(99)) == ([], 0, math.inf)


@pytest.mark.parametrize(
    ("reply", "wait_s", "problem"),
    [
        (b"", 0, "the connection was cut: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 0, "the connection was cut: "),
        (b"220 mail.example ESMTP\r\n\r\n", 0, "the answer is not HTTP: "),
        (b"", 3, "no answer within 0.5 s"),
    ],
)
def test_what_is_no_answer_is_a_failure_with_a_reason(reply: bytes, wait_s: float, problem: str) -> None:
    with raw_server(reply, wait_s) as url:
        offered = offer(url, ASK, per_second=20, seconds=0.5, timeout_s=0.5)

    assert offered.failed == len(offered.samples) == len(arrivals(20, 0.5, seed=0))
    assert all(words.startswith(problem) for words in offered.problems), offered.problems


def test_a_server_that_closes_after_each_answer_is_asked_over_new_connections() -> None:
    with http_server(lambda body: (200, body), protocol="HTTP/1.0") as url:
        offered = offer(url, ASK, per_second=50, seconds=1)

    assert (offered.failed, len(offered.samples)) == (0, len(arrivals(50, 1, seed=0)))


def test_answers_are_judged_each_by_its_own_check() -> None:
    def label(status: int, body: bytes) -> str | None:
        return None if json.loads(body)["label"] == "7" else "label must be 7"

    asks = [Ask(kind, "/", kind.encode(), check=label) for kind in ('{"label": "7"}', '{"label": "1"}', "{}", "none")]

    with http_server(lambda body: (200, body)) as url:
        offered = offer(url, asks, per_second=100, seconds=1)

    found = {sample.kind: sample.problem for sample in offered.samples}
    form = "the answer must have the form that its check reads, got "
    assert found['{"label": "7"}'] is None
    assert found['{"label": "1"}'] == "label must be 7"
    assert found["{}"] == f"{form}KeyError: 'label'"
    assert (found["none"] or "").startswith(f"{form}JSONDecodeError: ")


def test_a_status_other_than_200_is_a_failure_unless_the_check_expects_it() -> None:
    refused = Ask("refused", "/", b"x", check=lambda status, _: None if status == 413 else f"got {status}")

    with http_server(lambda _: (413, b"too large")) as url:
        offered = offer(url, [ASK, refused], per_second=50, seconds=1)

    assert {sample.problem for sample in offered.samples if sample.kind == "refused"} == {None}
    assert {sample.problem for sample in offered.samples if sample.kind == "image"} == {
        "status must be 200, got 413: b'too large'"
    }


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:80", "http://127.0.0.1:1/predictions/some"])
def test_urls_that_cannot_be_asked_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=rf"^url must be http://HOST:PORT, got {url}$"):
        offer(url, ASK, per_second=1, seconds=1)


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^asks must hold at least one, got none$"):
        offer("http://127.0.0.1:1", [], per_second=1, seconds=1)


def sample(due_s: float, latency_ms: float, problem: str | None = None) -> Sample:
    return Sample(due_s, 0.0, latency_ms, "image", problem)


def test_goodput_is_of_right_answers_and_lasts_as_long_as_they_do() -> None:
    in_time = [sample(at / 100, 5) for at in range(1000)]
    behind = [sample(at / 100, 10 * at) for at in range(1000)]  # the last after twice the time

    assert Offered(in_time, 10, 0, 0).goodput == pytest.approx(100, rel=0.01)
    assert Offered([*in_time[1:], sample(0, 30_000)], 10, 0, 0).goodput == pytest.approx(100, rel=0.01)  # one straggler
    assert Offered([*in_time[100:], *(sample(0, 5, "cut") for _ in range(100))], 10, 0, 0).goodput == pytest.approx(
        90, rel=0.01
    )
    assert Offered(behind, 10, 0, 0).goodput == pytest.approx(50, rel=0.01)


def test_figures_can_be_kept_as_json() -> None:
    offered = Offered([sample(at / 10, latency) for at, latency in enumerate((1, 10, 10, 100))], 1, 0, 0.1)
    none = Offered([sample(0, 5, "cut")], 1, 0, 0.1)

    assert json.loads(json.dumps(offered.figures()))["histogram_ms"] == {"1": 1, "10": 2, "100": 1}
    assert json.loads(json.dumps(none.figures(), allow_nan=False))["p99_ms"] is None
    assert none.figures()["problems"] == {"cut": 1}


def test_a_generator_that_cannot_keep_up_says_so() -> None:
    assert Offered([], 1, 0, generator_cpu=0.1, generator_late_ms=1).generator_limit is None
    assert "0.95 of its one core" in (Offered([], 1, 0, generator_cpu=0.95).generator_limit or "")
    assert "more than 40 ms late" in (Offered([], 1, 0, 0.1, generator_late_ms=40).generator_limit or "")


def test_a_signal_while_the_generator_hands_over_what_it_has_loses_nothing() -> None:
    due = [0.0] * 4000  # more than a pipe holds
    plan = Plan("127.0.0.1", free_port(), [b"nobody is there"], due, [0] * len(due), 100, 5.0)
    command = [sys.executable, "-m", "load_tests.open_loop.generator"]
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=unbuffered, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(plan))
        process.stdin.close()
        until(lambda: _waiting(process.stdout) >= PIPE)

        process.send_signal(signal.SIGALRM)
        time.sleep(0.2)
        sent = pickle.loads(process.stdout.read())

    assert len(sent.sent_s) == len(sent.outcome) == len(due)
    assert {type(outcome[1]) for outcome in sent.outcomes} == {str}


def _waiting(stream: object) -> int:
    """Bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, b"\0" * 4))[0]  # type: ignore[call-overload, no-any-return]
