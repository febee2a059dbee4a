"""The soak: what it tells apart, what it calls growth, and all of it once against a tiny model."""

import html
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT

from load_tests.asked.asks import Ask
from load_tests.soak.faults import FAULTS, Happened
from load_tests.soak.outcomes import outcome_of, told_apart
from load_tests.soak.promises import is_calm, of_latency, of_processes, of_requests
from load_tests.soak.steady_load import Failure, SteadyLoad, Window
from load_tests.soak.trends import DESCRIPTORS, LATENCY, MEMORY, flat, floors, steady
from load_tests.soak.watch import ROLES, History, Watch
from serving.torchserve.state import Server
from training.figures import save_svg
from training.soak_plot import draw
from training.soak_tables import file_of, soak_lines, soak_table
from training.tables import results_page

MINUTE = 60.0
DIED = b'{"code": 507, "type": "InternalServerException", "message": "Worker died."}'
FULL = b'{"code": 503, "type": "ServiceUnavailableException", "message": "its queue is full"}'
SEEDS = range(8)


# Growth


def looks(minutes: float, every_s: float = 3) -> np.ndarray:
    return np.arange(0, minutes * MINUTE, every_s)


def resident(times: np.ndarray, level: float, per_minute: float, seed: int) -> np.ndarray:
    """A made-up process: a level with noise, batches that take more for a moment, a fault, and a leak."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.004 * level, len(times)) + (rng.random(len(times)) < 0.05) * 0.2 * level
    fault = np.where((times > times[-1] / 3) & (times < times[-1] / 2.8), 0.1 * level, 0)
    return level + noise + fault + per_minute * times / MINUTE


@pytest.mark.parametrize("level", [60, 170, 340])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_of_one_megabyte_a_minute_is_found_in_a_soak_and_none_where_there_is_none(level: int, seed: int) -> None:
    times = looks(22)  # what is left of 30 minutes after a restart and the warm-up

    assert not flat("memory", times, resident(times, level, 1, seed), MEMORY).is_kept
    assert flat("memory", times, resident(times, level, 0, seed), MEMORY).is_kept


def test_what_is_said_of_a_leak() -> None:
    times = looks(20)

    line = flat("memory of worker 7", times, 100 + times / MINUTE, MEMORY)
    assert line.asked == "memory of worker 7 must not grow by more than 5 % or 4 MB"
    assert line.got == "+19.9 MB in 19.9 minutes, of 110 MB"


def test_a_short_look_has_a_tolerance_of_its_own_which_is_said() -> None:
    times = looks(1, 0.5)

    line = flat("memory", times, 100 + 40 * times / MINUTE, MEMORY)
    assert line.is_kept
    assert line.asked == "memory must not grow by more than 64 MB, as it was looked at for less than 10 minutes"
    assert not flat("memory", times, 100 + 80 * times / MINUTE, MEMORY).is_kept


@pytest.mark.parametrize("seed", SEEDS)
def test_descriptors_that_come_and_go_are_no_leak_and_one_a_minute_is(seed: int) -> None:
    times = looks(24)
    connections = np.random.default_rng(seed).poisson(12, len(times)) + np.where(times > times[-1] / 2, 15, 0) * (
        times < times[-1] / 1.8
    )

    assert flat("descriptors", *floors(times, 60 + connections), DESCRIPTORS).is_kept
    assert not flat("descriptors", *floors(times, 60 + connections + times // MINUTE), DESCRIPTORS).is_kept


@pytest.mark.parametrize("seed", SEEDS)
def test_a_percentile_that_goes_up_and_down_has_no_trend_and_one_that_rises_by_half_has(seed: int) -> None:
    times = looks(30, 10)
    p99 = 40 * np.random.default_rng(seed).lognormal(0, 0.2, len(times))

    assert steady("p99", times, p99, LATENCY).is_kept
    assert not steady("p99", times, p99 * (1 + 0.5 * times / times[-1]), LATENCY).is_kept
    assert steady("p99", times, p99 * (1 - 0.5 * times / times[-1]), LATENCY).is_kept


# Outcomes and promises


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"right", "right"),
        (200, b"{}", "wrong"),
        (500, DIED, "lost"),
        (500, b'{"error": {"code": "internal_error"}}', "wrong"),
        (503, FULL, "refused"),
        (503, b'{"error": {"code": "overloaded", "message": "too much"}}', "refused"),
        (503, b'{"error": "draining: about to stop"}', "refused"),
        (503, b'{"type": "InternalServerException", "message": "Invalid model predict output"}', "wrong"),
        (404, b"no JSON", "wrong"),
    ],
)
def test_answers_are_told_apart(status: int, body: bytes, outcome: str) -> None:
    ask = Ask("some", "/", b"", check=lambda status, body: None if body == b"right" else f"got {status}")

    assert outcome_of(told_apart(ask).check(status, body)) == outcome


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        ("no connection: [Errno 111] Connection refused", "refused"),
        ("no connection: timed out", "hung"),
        ("no answer within 30 s", "hung"),
        ("the connection was cut: closed by the server", "cut"),
    ],
)
def test_what_is_no_answer_is_told_apart(problem: str, outcome: str) -> None:
    assert outcome_of(problem) == outcome


def window(at_s: float, p99_ms: float | None = 10, requests: int = 100) -> Window:
    return Window(at_s, 10, requests, {"right": requests}, 5, p99_ms, 0, 0.1)


KILLED = Happened("worker killed", "", began_s=100, ended_s=103, killed=1)
STOPPED = Happened("stop and start", "", began_s=200, ended_s=210, down_s=(201, 210))


@pytest.mark.parametrize(
    ("failure", "broken"),
    [
        (Failure(99.9, 100.2, "PNG", "lost", "lost: died"), None),
        (Failure(50, 50.2, "PNG", "lost", "lost: died"), "no other request may be lost"),
        (Failure(101, 101.1, "PNG", "refused", "refused: full"), None),
        (Failure(205, 205, "PNG", "refused", "no connection"), None),
        (Failure(205, 205, "PNG", "cut", "cut"), None),
        (Failure(200.5, 204, "PNG", "cut", "cut"), "no connection may be cut but by a stop"),  # it was accepted
        (Failure(101, 101.1, "PNG", "cut", "cut"), "no connection may be cut but by a stop"),
        (Failure(205, 235, "PNG", "hung", "no answer"), "no request may wait without an end"),
        (Failure(205, 205, "PNG", "wrong", "wrong: seven"), "no answer may be wrong"),
        (
            Failure(50, 50, "PNG", "refused", "refused: full"),
            "a server that is up may refuse at most 0.0 % of the requests",
        ),
    ],
)
def test_only_what_was_promised_to_fail_may_fail(failure: Failure, broken: str | None) -> None:
    lines = of_requests([window(0)], [failure], [KILLED, STOPPED], batch_size=4, most_refused=0)

    assert [line.asked for line in lines if not line.is_kept] == [broken] * (broken is not None)


def test_a_killed_worker_takes_no_more_than_its_batch() -> None:
    lost = [Failure(100, 100.1, "PNG", "lost", "lost: died")] * 5

    (line,) = (one for one in of_requests([window(0)], lost, [KILLED], 4, 0) if not one.is_kept)
    assert (line.asked, line.got) == (
        "of each worker that is killed at most the batch in its hands may be lost, 4 requests", "5",
    )  # fmt: skip


def test_windows_with_a_fault_say_nothing_of_the_latency() -> None:
    windows = [window(10.0 * n, 10 if is_calm(window(10.0 * n), [STOPPED]) else 5000) for n in range(100)]

    assert of_latency(windows, [STOPPED]).is_kept
    assert not of_latency([window(10.0 * n, 10 + n) for n in range(100)], [STOPPED]).is_kept
    assert [one.at_s for one in windows if one.p99_ms == 5000] == [190, 200, 210, 220]


def history(role: str, pid: int, times: np.ndarray, megabytes: np.ndarray) -> History:
    return History(role, pid, list(times), list(megabytes), [20] * len(times))


def test_processes_that_have_ended_are_not_judged_and_warming_up_is_no_leak() -> None:
    times = looks(30)
    warming = 100 + 50 * np.minimum(times / (4 * MINUTE), 1)
    histories = [history(role, n, times, warming) for n, role in enumerate(ROLES)]
    ended = history("worker", 99, times[: len(times) // 2], 100 + times[: len(times) // 2])

    lines = of_processes([*histories, ended])
    assert [line for line in lines if not line.is_kept] == []
    assert sum("memory of worker" in line.asked for line in lines) == 1
    (missing,) = (line for line in of_processes(histories[1:]) if not line.is_kept)
    assert (missing.asked, missing.got) == ("java must be there to the end", "0 running")


# The load


def test_a_load_goes_on_window_by_window_and_its_failures_are_kept() -> None:
    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            time.sleep(0.5)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    asks = [
        Ask(kind, "/", kind.encode(), check=lambda _, body: None if body == b"good" else "bad")
        for kind in ("good", "bad")
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with SteadyLoad(f"http://127.0.0.1:{http.server_port}", asks, 20, window_s=1, began=time.monotonic()) as load:
            time.sleep(3.5)
        http.shutdown()

    assert len(load.windows) >= 2
    assert [one.at_s for one in load.windows] == sorted(one.at_s for one in load.windows)
    right, wrong = (sum(one.outcomes.get(outcome, 0) for one in load.windows) for outcome in ("right", "wrong"))
    assert right + wrong == sum(one.requests for one in load.windows) > 20
    assert {(one.kind, one.outcome, one.problem) for one in load.failures} == {("bad", "wrong", "wrong: bad")}
    assert len(load.failures) == wrong > 0
    assert all(one.ended_s - one.sent_s >= 0.49 for one in load.failures)
    assert min(one.p50_ms or 0 for one in load.windows) >= 500


# Processes


def test_every_process_of_a_server_is_watched(server: Server, state: Path) -> None:
    with Watch(state, every_s=0.05) as watch:
        deadline = time.monotonic() + 60
        while len(watch.histories) < 7 or min(len(one.times) for one in list(watch.histories.values())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    roles = [role for role, _ in watch.histories]
    assert {role: roles.count(role) for role in ROLES} == {"java": 1, "worker": 4, "keeper": 1, "exporter": 1}
    assert server.java.pid in [pid for role, pid in watch.histories if role == "java"]
    for one in watch.histories.values():
        assert one.times == sorted(one.times)
        assert len(one.times) == len(one.megabytes) == len(one.descriptors)
        assert one.megabytes[-1] == pytest.approx(psutil.Process(one.pid).memory_info().rss / 1e6, rel=0.3)


def test_a_process_that_leaks_is_seen_to() -> None:
    script = "import time; kept = []\nwhile True: kept += [bytearray(b'x' * 10**6), open('/dev/null')]; time.sleep(.02)"
    with subprocess.Popen([sys.executable, "-c", script]) as leaking:
        seen, one = History("worker", leaking.pid), psutil.Process(leaking.pid)
        for _ in range(20):
            time.sleep(0.05)
            seen.look(one)
        leaking.kill()
    seen.look(one)

    assert len(seen.times) == 20
    assert seen.megabytes[-1] > seen.megabytes[0] + 5
    assert seen.descriptors[-1] > seen.descriptors[0] + 5
    assert not flat("memory", np.array(seen.times) * 1200, seen.megabytes, MEMORY).is_kept


# All of it


def test_a_minute_with_every_fault(bundle_dir: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("soak.json", "soak.html", "soak.svg")}
    options = [
        "--bundle",
        bundle_dir,
        "--minutes",
        1,
        "--rate",
        15,
        "--workers",
        1,
        "--ready-within",
        120,
        "--refused",
        1,
    ]
    places = [
        word
        for option, file in zip(("--out", "--report", "--plot"), files.values(), strict=True)
        for word in (option, file)
    ]
    command = [sys.executable, "-m", "load_tests", "soak", *map(str, [*options, *places])]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)

    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads(files["soak.json"].read_text())
    assert [fault["name"] for fault in record["faults"]] == [fault.name for fault in FAULTS]
    assert {*record["ready_s"]} == {"stop and start", "worker killed"}
    assert record["outcomes"]["right"] > 100
    assert set(record["outcomes"]) <= {"right", "refused", "lost", "cut"}
    assert {one["role"] for one in record["processes"]} == set(ROLES)
    assert all(line["is_kept"] for line in record["lines"])
    for line in record["lines"]:
        assert f"{line['asked']}: {line['got']}" in result.stdout
    page = html.unescape(files["soak.html"].read_text())
    assert "data:image/svg+xml" in page
    assert all(fault.description in page for fault in FAULTS)
    _is_recorded_well(record, files["soak.svg"], tmp_path)


def _is_recorded_well(record: dict, drawn: Path, tmp_path: Path) -> None:
    """The plot is the same once more from JSON, and so are the tables."""
    save_svg(draw(record), tmp_path / "again.svg")
    results = {"soak": {"tiny-mda:1 float32": record}}

    assert (tmp_path / "again.svg").read_bytes() == drawn.read_bytes()
    assert f"(plots/{file_of('tiny-mda:1 float32')})" in soak_table(results)
    assert soak_lines(results).count("\n- ") == len(record["lines"])
    assert soak_table(results) in results_page(results)
    assert "Soak" not in results_page({})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "0.5"], "should be greater than or equal to 1"),
        (["--bundle", "missing/1", "--rate", "1"], "error: missing/1/bundle.json must exist: a bundle is a folder"),
        (["--precision", "int4"], "'int4' is not one of"),
    ],
)
def test_what_cannot_be_soaked_is_said(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "load_tests", "soak", *options]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert words in " ".join(result.stderr.replace("│", "").split())
    assert "Traceback" not in result.stderr
