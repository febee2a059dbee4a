"""The benchmark of peers: the framework against tiny servers, and what each peer's folder must hold."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from load_tests.__main__ import app
from load_tests.peers import command, visit
from load_tests.peers.agreement import difference, make_questions, require_agreement
from load_tests.peers.environments import environment, folder_of, known_peers, lock_of, packages
from load_tests.peers.peer import Launch, Peer
from load_tests.peers.running import MARK, PeerError, free_port, running
from load_tests.peers.schedule import OURS, Kept, Turn, estimated_minutes, turns
from load_tests.peers.summary import summarise
from serving.bundle import Bundle
from serving.errors import shown

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
NEEDED = ("numpy", "onnxruntime", "orjson", "pillow", "pydantic")

SERVER = '''
"""Answers images by the predictor in one of several ways; it leaves a child behind that would outlive it."""
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from load_tests.peers.answering import answer, open_predictor, read_arguments

how, (bundle, precision, port, _) = sys.argv[1], read_arguments(sys.argv[2:])
if how == "unstartable":
    raise SystemExit("there is no model today")
predictor = open_predictor(bundle, precision, threads=1)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(b"")

    def do_POST(self):
        body = answer(predictor, [self.rfile.read(int(self.headers["content-length"]))])[0]
        if how == "wrong":
            body = json.dumps(json.loads(body) | {"probability": 0.123}).encode()
        if how == "mortal" and (asked := asked_times()) > 20:
            print(f"no more than {asked}", flush=True)
            import os
            os._exit(3)
        self.reply(body)

    def reply(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

count = 0
def asked_times():
    global count
    count += 1
    return count

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


def start_tiny(script: Path, how: str, launch: Launch) -> Sequence[str]:
    given = (launch.bundle, launch.precision, launch.port, launch.cores)
    return [sys.executable, str(script), how, *map(str, given)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    """A peer of a given behaviour: right, wrong, unstartable or mortal."""
    script = tmp_path_factory.mktemp("tiny") / "server.py"
    script.write_text(SERVER)

    def make(how: str) -> Peer:
        start = partial(start_tiny, script, how)
        return Peer(name=how, title=how, source="none", tuning="none", command=start, path="/ask", ready="/")

    return make


def launched(bundle: Path, scratch: Path) -> Launch:
    return Launch(Path(sys.executable), bundle, "float32", free_port(), 1, scratch)


def marked(scratch: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(scratch):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_peer_that_answers_as_ours_does_agrees_and_nothing_of_it_is_left(
    tiny: Callable[[str], Peer], bundle_dir: Path, tmp_path: Path
) -> None:
    peer, questions = tiny("right"), make_questions(Bundle.load(bundle_dir), "float32")

    with running(peer, launched(bundle_dir, tmp_path), questions[0].image, 60) as server:
        require_agreement(questions, server, peer)
        assert len(marked(tmp_path)) == 2
        assert server.seconds_to_ready > 0
    assert not marked(tmp_path)


def test_a_peer_that_answers_otherwise_is_told_with_what_differs(
    tiny: Callable[[str], Peer], bundle_dir: Path, tmp_path: Path
) -> None:
    peer, questions = tiny("wrong"), make_questions(Bundle.load(bundle_dir), "float32")

    with (
        running(peer, launched(bundle_dir, tmp_path), questions[0].image, 60) as server,
        pytest.raises(PeerError, match=r"got for PNG 0: answer\.probability 0\.123 instead of"),
    ):
        require_agreement(questions, server, peer)


def test_a_peer_that_does_not_start_is_told_with_its_log(
    tiny: Callable[[str], Peer], bundle_dir: Path, tmp_path: Path
) -> None:
    with (
        pytest.raises(PeerError, match=r"(?s)must start, got exit code 1; its log:.*there is no model today"),
        running(tiny("unstartable"), launched(bundle_dir, tmp_path), b"", 60),
    ):
        pytest.fail("it must not run")


def test_a_peer_that_is_never_ready_is_ended(tiny: Callable[[str], Peer], bundle_dir: Path, tmp_path: Path) -> None:
    peer = replace(tiny("right"), path="/ask", wrap=lambda image: (b"", {"content-length": "nonsense"}))

    with (
        pytest.raises(PeerError, match="must be ready in time"),
        running(peer, launched(bundle_dir, tmp_path), b"", 3),
    ):
        pytest.fail("it must not run")
    assert not marked(tmp_path)


def test_answers_are_compared_to_the_last_number() -> None:
    ours = {"label": "7", "probability": 0.5, "components": {"7": [0.25, 0.75]}, "component": 1}

    assert difference(ours, json.loads(json.dumps(ours))) is None
    assert difference(ours, ours | {"probability": 0.50005}) is None
    assert difference(ours, ours | {"probability": 0.501}) == "answer.probability 0.501 instead of 0.5"
    assert difference(ours, ours | {"label": "1"}) == "answer.label '1' instead of '7'"
    assert difference(ours, ours | {"components": {"7": [0.25, 0.7]}}) == "answer.components.7[1] 0.7 instead of 0.75"
    assert difference(ours, {"label": "7"}) == f"answer with keys ['label'] instead of {sorted(ours)}"
    assert difference(ours, ours | {"component": 0}) == "answer.component 0 instead of 1"


def test_ours_stands_before_and_after_every_peer_and_rounds_alternate() -> None:
    schedule = turns([OURS, "a", "b", "c"], 2)

    assert [turn.peer for turn in schedule] == [OURS, "a", "b", OURS, "c", OURS, OURS, "c", "b", OURS, "a", OURS]
    assert [turn.round for turn in schedule] == [0] * 6 + [1] * 6
    assert estimated_minutes(schedule, 4, 4.0) > estimated_minutes(schedule[:6], 4, 4.0) > 1


def visited(rate: float, name: str, **others: float) -> dict[str, Any]:
    at = {"offered": rate / 2, "p50_ms": 1.0, "p99_ms": 2.0}
    opened = {of: at | {"offered": offered} for of, offered in {name: rate / 2, **others}.items()}
    closed = {"8": {"per_second": rate, "p50_ms": 1.0, "p99_ms": 2.0, "failed": 0}}
    return {"closed": closed, "open": opened, "memory_mb": 10, "seconds_to_ready": 1.0}


def test_a_run_goes_on_where_it_was_cut_and_tries_again_what_failed(tmp_path: Path) -> None:
    file, settings = tmp_path / "kept" / "visits.json", {"rounds": 1}
    first = Kept(file, settings, resume=False)
    first.add(Turn(0, 0, OURS), visited(100, OURS))
    first.add(Turn(0, 1, "a"), {"error": "died"})

    again = Kept(file, settings, resume=True)

    assert again.holds(Turn(0, 0, OURS))
    assert not again.holds(Turn(0, 1, "a"))
    assert not Kept(file, settings, resume=False).holds(Turn(0, 0, OURS))
    with pytest.raises(ValueError, match=r"--resume must go on .* got \{'rounds': 1\}"):
        Kept(file, {"rounds": 2}, resume=True)


def test_ours_is_asked_at_the_rates_of_the_peers_since_its_last_visit(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "visits.json", {}, resume=False)
    kept.add(Turn(0, 0, OURS), visited(100, OURS))
    kept.add(Turn(0, 1, "a"), visited(80, "a"))
    kept.add(Turn(0, 2, "b"), {"error": "died"})

    assert kept.rates_for_ours(Turn(0, 3, OURS)) == {"a": 40}
    kept.add(Turn(0, 3, OURS), visited(100, OURS, a=40))
    assert kept.rates_for_ours(Turn(0, 5, OURS)) == {}


def test_a_ratio_is_of_the_two_visits_of_ours_around_a_peer_and_the_median_of_the_rounds() -> None:
    rates = [(100, 50, 120), (200, 100, 200), (90, 90, 90)]
    visits = []
    for number, (before, peers, after) in enumerate(rates):
        of_round = [visited(before, OURS), visited(peers, "a"), visited(after, OURS, a=peers / 2)]
        names = (OURS, "a", OURS)
        visits += [{"round": number, "place": n, "peer": names[n], **one} for n, one in enumerate(of_round)]
    visits.append({"round": 2, "place": 3, "peer": "b", "error": "died"})

    rows = summarise(visits, [8])

    assert rows["a"]["closed"]["8"]["ratios"] == [2.2, 2.0, 1.0]
    assert rows["a"]["closed"]["8"]["ratio"] == 2.0
    assert (rows["a"]["closed"]["8"]["least_per_second"], rows["a"]["closed"]["8"]["most_per_second"]) == (50, 100)
    assert rows["a"]["ours_at_its_rate"]["offered"] == 45
    assert "ratio" not in rows[OURS]["closed"]["8"]
    assert rows["b"] == {"rounds": visits[-1:], "errors": ["died"]}


@needs_wrk
def test_the_command_measures_what_runs_and_fails_for_what_does_not(
    tiny: Callable[[str], Peer], bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvloop")
    named = {name: tiny(name) for name in ("right", "mortal")}
    ours = replace(named["right"], name=OURS)
    monkeypatch.setattr(command, "chosen_peers", lambda names: [ours, *named.values()])
    monkeypatch.setattr(command, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(visit, "WARM_UP_S", 1)
    out = tmp_path / "out.json"
    arguments = ["--bundle", str(bundle_dir), "--rounds", "1", "--seconds", "1", "--connections", "2"]

    done = CliRunner().invoke(app, ["peers", *arguments, "--out", str(out)])

    assert done.exit_code == 1, done.output
    assert out.is_file(), f"{done.exception} {done.output}"
    rows = json.loads(out.read_text())["results"][0]["rows"]
    assert rows["right"]["closed"]["2"]["per_second"] > 0
    assert rows["right"]["closed"]["2"]["ratio"] > 0
    assert rows["right"]["ours_at_its_rate"]["offered"] == rows["right"]["open"]["offered"]
    assert rows["right"]["memory_mb"] > 10
    assert "must" in rows["mortal"]["errors"][0]
    assert "closed" not in rows["mortal"]
    assert len(list(tmp_path.glob("peers-*-float32.svg"))) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--connections", "1,x", "--connections must be whole numbers above 0, with commas between them, got '1,x'"),
        ("--connections", "0", "--connections must be whole numbers above 0, with commas between them, got '0'"),
        ("--peer", "nginx", "--peer must be one of "),
    ],
)
@needs_wrk
def test_bad_options_are_refused_in_words(option: str, value: str, message: str) -> None:
    done = CliRunner().invoke(app, ["peers", option, value])

    assert done.exit_code == 1
    assert f"error: {message}" in str(done.exception)


@pytest.mark.parametrize("name", sorted(known_peers()))
def test_each_peer_declares_what_the_benchmark_needs(name: str) -> None:
    peer = known_peers()[name]

    assert peer.name == name
    assert peer.title
    assert len(peer.tuning) > 10, shown(peer.tuning)
    assert peer.source.startswith(("https://", "docs/"))
    assert peer.path.startswith("/")
    assert peer.ready.startswith("/")
    body, headers = peer.wrap(b"image")
    assert b"image" in body or b"aW1hZ2U" in body
    assert all(isinstance(part, str) for pair in headers.items() for part in pair)
    assert lock_of(peer).is_file() == lock_of(peer).with_suffix(".in").is_file()
    assert peer.lock is None or lock_of(peer).is_file()


LOCKED = [name for name, peer in sorted(known_peers().items()) if lock_of(peer).is_file()]


@pytest.mark.parametrize("name", LOCKED)
def test_locks_are_hashed_hold_no_addresses_and_what_the_model_needs(name: str) -> None:
    peer = known_peers()[name]
    text = lock_of(peer).read_text()

    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block and re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", block) for block in blocks)
    pinned = {block.partition("==")[0].partition("[")[0] for block in blocks}
    assert set(NEEDED) <= pinned
    assert packages(peer), "what the peer itself is must be among its requirements"


def test_a_variant_is_another_peer_in_the_same_environment() -> None:
    peer = known_peers()["mosec"]

    ways = peer.with_variants()

    assert ways[0] == peer
    assert [way.name for way in ways[1:]] == [f"mosec {name}" for name in peer.variants]
    assert all(folder_of(way) == folder_of(peer) for way in ways)
    assert ways[1].environment != peer.environment


def test_peers_without_a_lock_run_in_the_projects_environment(tiny: Callable[[str], Peer], tmp_path: Path) -> None:
    assert environment(tiny("right"), tmp_path) == Path(sys.executable)
    assert not list(tmp_path.iterdir())
