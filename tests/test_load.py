"""The load test by locust, run against a real server for a few seconds."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from conftest import free_port

from serving.torchserve.launch import Server

ROOT = Path(__file__).resolve().parents[1]
PNG_ALONE = "[models]\ntiny-mda = 1\n[kinds]\npng = 1\n"


def locust(url: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "load_tests/locustfile.py", "--headless", "--host", url]
    command += ["--users", "4", "--spawn-rate", "4", "--run-time", "3s", "--only-summary", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file into the test's own folder."""

    def write_text(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_text


def test_every_kind_of_two_models_is_answered_right_under_load(server: Server, tmp_path: Path) -> None:
    report, summary = tmp_path / "report.html", tmp_path / "new" / "summary.json"

    result = locust(server.url, "--model", "tiny-mda-ts,tiny-softmax", "--html", report, "--summary", summary)

    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 failures (0.00%)" in result.stdout
    assert "error rate of all requests must be at most 0.1 %, got 0 %: held" in result.stdout
    assert "<html" in report.read_text()
    found = json.loads(summary.read_text())
    assert found["total"]["count"] == sum(kind["count"] for kind in found["kinds"].values()) > 0
    assert found["total"]["failed"] == 0
    for figures in found["kinds"].values():
        assert sum(figures["histogram"].values()) == figures["count"]
        assert figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert (found["shape"], found["users"], found["load_processes"]) == ("steady", 4, 1)
    assert {"machine", "date", "mix", "over_time"} <= found.keys()
    assert found["mix"]["models"] == {"tiny-mda-ts": 1, "tiny-softmax": 1}
    assert all(name.endswith((" (tiny-mda-ts)", " (tiny-softmax)")) for name in found["kinds"])
    assert all(objective["held"] is not False for objective in found["objectives"])


@pytest.mark.parametrize(("allowed", "code", "word"), [("0.001", 1, "broken"), ("1", 0, "held")])
def test_a_wrong_answer_is_a_failure(
    server: Server, write: Callable[[str, str], Path], allowed: str, code: int, word: str
) -> None:
    mix, slo = write("mix.toml", PNG_ALONE), write("slo.toml", f"[all]\nerror_rate = {allowed}\n")
    summary = mix.with_name("summary.json")

    with mixed_up(server.url) as url:
        result = locust(url, "--mix", mix, "--slo", slo, "--summary", summary)

    assert result.returncode == code, result.stdout + result.stderr
    (objective,) = json.loads(summary.read_text())["objectives"]
    assert objective["text"].endswith(word)
    assert objective["text"] in result.stdout
    (failure, *_) = json.loads(summary.read_text())["failures"]
    assert failure["kind"] == "PNG"
    assert "must be" in failure["reason"]
    assert failure["reason"] in result.stderr  # locust prints its table of failures there


def test_objectives_hold_for_all_processes_together(server: Server, write: Callable[[str, str], Path]) -> None:
    mix, slo = write("mix.toml", PNG_ALONE + "corrupt = 1"), write("slo.toml", "[png]\np99_ms = 0.001\np50_ms = 1e6\n")
    summary = mix.with_name("summary.json")

    port = free_port()  # on which master and workers talk

    of_two = ("--processes", 2, "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    result = locust(server.url, *of_two, "--mix", mix, "--slo", slo, "--summary", summary)

    assert result.returncode == 1, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if "PNG" in line]
    assert [line.rpartition(" ")[2] for line in lines] == ["held", "broken"]
    assert lines[1].startswith("p99 of PNG must be at most 0.001 ms, got ")
    found = json.loads(summary.read_text())
    assert found["load_processes"] == 2
    assert found["total"]["failed"] == 0
    assert found["kinds"].keys() <= {"PNG", "corrupt image"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nobody"), "PNG at /predictions/nobody, asked alone, must be 200 without an error, got 404"),
        (("--mix", "none.toml"), "--mix must be a file that can be read, got none.toml: No such file or directory"),
        (("--slo", "load_tests/mix.toml"), "load_tests/mix.toml: models must be one of the keys all, png, "),
        (("--host", "http://127.0.0.1:9"), "asked alone, must be answered, got ConnectError"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    server: Server, write: Callable[[str, str], Path], options: tuple[str, str], message: str
) -> None:
    mix = write("mix.toml", PNG_ALONE)

    result = locust(server.url, "--mix", mix, *options)

    assert result.returncode == 1, result.stdout + result.stderr
    assert f"error: {message}" in result.stderr or (message in result.stderr and "error: PNG" in result.stderr)
    assert "Traceback" not in result.stderr


@contextmanager
def mixed_up(url: str) -> Iterator[str]:
    """A server before the server, which answers rightly at first and later with what another request got."""
    answers: list[bytes] = []
    seen = count()

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(answers) < 8:  # as many as there are images
                answers.append(httpx.post(url + self.path, content=body, trust_env=False).content)
                answer = answers[-1]
            else:
                answer = answers[next(seen) % len(answers)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as before:
        thread = Thread(target=before.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{before.server_port}"
        before.shutdown()
        thread.join()
