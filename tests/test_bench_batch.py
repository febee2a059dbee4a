"""The benchmark of offline scoring: its images, its peers, what it refuses, and all of it once, tiny."""

import json
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from load_tests.asked.asks import Ask
from load_tests.bare import Layout, bare_decoding, bare_runtime, read_as_served, read_plainly
from load_tests.memory import PeakMemory
from load_tests.offline import bench
from load_tests.offline.bench import Bare, Case, check_peers, measure_case, row_of, unless_refused
from load_tests.offline.beside import measure_beside
from load_tests.offline.commands import PEERS, WrongLabels, check_labels, labels_of, run, summary_of
from load_tests.offline.images import ImageSet, make_digits, make_photos
from load_tests.offline.names import measure_names, write_names
from load_tests.open_loop.load import arrivals, offer
from serving.bundle import Bundle
from serving.predictor import Predictor
from serving.torchserve.state import Server

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT / "model_store" / "mnist-mda" / "1"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return make_digits(tmp_path_factory.mktemp("digits"), 200)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return make_photos(tmp_path_factory.mktemp("photos"), 2)


# Images


def test_digits_are_mnists_in_subfolders_and_in_tars(digits: ImageSet) -> None:
    paths = digits.paths()

    assert len(paths) == 200
    assert len({path.parent for path in paths}) == 100
    bundle = Bundle.load(MNIST)
    answers = Predictor(bundle).predict([path.read_bytes() for path in paths[:100]])
    assert {answer["label"] for answer in answers if isinstance(answer, dict)} == set("0123456789")
    with tarfile.open(digits.tars / "00000.tar") as tar:
        assert tar.getnames() == [path.relative_to(digits.files).as_posix() for path in paths]


def test_photos_have_the_sizes_and_the_bytes_of_photos(photos: ImageSet) -> None:
    for path in photos.paths():
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
        assert 1.9e6 < pixels < 12.1e6
        assert 0.15 < path.stat().st_size / pixels < 0.5


def test_a_whole_set_is_used_again_and_a_broken_one_made_anew(tmp_path: Path) -> None:
    made = make_digits(tmp_path, 30)
    first = made.paths()[0]
    kept, data = first.stat(), first.read_bytes()

    make_digits(tmp_path, 30)
    assert first.stat().st_mtime_ns == kept.st_mtime_ns
    first.unlink()
    (made.tars / "whole.json").unlink()  # as of a command that was killed
    make_digits(tmp_path, 30)
    assert first.read_bytes() == data
    assert len(make_digits(tmp_path, 20).paths()) == 20


# Bare speeds


def test_bare_speeds_are_measured_in_several_processes(digits: ImageSet) -> None:
    bundle = Bundle.load(MNIST)
    images = np.stack([read_as_served(path, bundle.manifest.input) for path in digits.paths()[:8]])

    rate, milliseconds = bare_runtime(bundle, Layout(2, 1), images, 4, 0.2)

    assert rate > 0 < milliseconds
    for reader in (read_as_served, read_plainly):
        assert bare_decoding(digits.paths(), bundle.manifest.input, reader, 2) > 0


def test_reading_plainly_finds_what_serving_does(photos: ImageSet, digits: ImageSet) -> None:
    for bundle, path in ((MNIST, digits.paths()[0]), (MNIST.parents[1] / "cifar100-lda-best" / "1", photos.paths()[0])):
        spec = Bundle.load(bundle).manifest.input

        plain, served = read_plainly(path, spec), read_as_served(path, spec)

        difference = np.abs(plain.reshape(spec.height, spec.width, -1).astype(int) - served.transpose(1, 2, 0))
        assert difference.mean() < 2


def test_memory_of_descendants_counts() -> None:
    child = "held = b'x' * 80_000_000; print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    with PeakMemory(process.pid) as peak:
        process.stdout.readline()
    process.communicate("\n")

    assert 80e6 < peak.bytes < 160e6


# The whole


def test_score_and_a_peer_are_measured_against_the_bare_speeds(digits: ImageSet, tmp_path: Path) -> None:
    case = Case("png", MNIST, "float32")

    result = measure_case(case, digits, rounds=1, seconds=0.2, peers=["DataLoader"], scratch=tmp_path)

    assert [(row["by"], row["form"]) for row in result["rows"]] == [
        ("score", "files"), ("score", "tar"), ("DataLoader", "files"),
    ]  # fmt: skip
    assert result["digest"] == Bundle.load(MNIST).manifest.sha256["model.onnx"]
    assert result["limit"] == "runtime"
    assert result["both_per_second"] < result["runtime_per_second"] < result["decoding_per_second"]
    for row in result["rows"]:
        assert row["command_images_per_second"] < row["images_per_second"]
        assert row["ratio"] == pytest.approx(row["images_per_second"] / result["runtime_per_second"], abs=0.01)
        assert 20 < row["peak_mb"] < 5000
    bench.show(result)
    assert not list(tmp_path.iterdir())


def test_a_long_list_is_begun_with_and_left(digits: ImageSet, bundle_dir: Path, tmp_path: Path) -> None:
    found = measure_names(digits.paths(), 50_000, bundle_dir, tmp_path)

    assert found["count"] == 50_000
    assert 0 <= found["seconds_to_first_image"] <= found["seconds_to_first_part"]
    assert 20 < found["peak_mb"] < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "lines"), [(2, [0, 1]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_names_are_repeated_until_there_are_enough(count: int, lines: list[int], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]

    write_names(tmp_path / "names.txt", paths, count)

    assert (tmp_path / "names.txt").read_text().splitlines() == [str(paths[line]) for line in lines]


def test_the_command_writes_its_figures(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object) -> list[dict[str, object]]:  # which the test above does
        row = {"by": "score", "form": "files", "ratio": 0.93, "images_per_second": 930.0}
        bare = {"runtime_per_second": 1000.0, "decoding_per_second": 9000.0, "pillow_per_second": 9500.0}
        rest = {"runtime_layout": "2 x 1", "both_per_second": 900.0, "limit": "runtime", "rows": [row]}
        seconds = {"seconds_to_first_image": 3.5, "seconds_to_first_part": 12.5}
        names = {"count": 10_000_000, **seconds, "peak_mb": 640}
        return [{"bundle": "mnist-mda:1", "precision": "int8", "images": "200 PNGs", "cores": 2, "names": names,
                 **bare, **rest}]  # fmt: skip

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr(bench, "make_photos", lambda *_: digits)
    out = tmp_path / "out" / "bench.json"

    bench.main(images=5, photos=1, no_peers=True, scratch=tmp_path, out=out)

    assert json.loads(out.read_text())["results"] == measured()
    said = capsys.readouterr().out
    assert re.search(r"score +│ files +│ +930.0", said)
    assert "10,000,000 paths: first image after about 3.5 s, first part after 12.5 s, at most 640 MB until then" in said


# Peers


def table_of(labels: dict[str, str], file: Path) -> Path:
    pq.write_table(pa.table({"key": list(labels), "label": list(labels.values())}), file)
    return file


def test_a_peer_with_other_labels_is_refused(tmp_path: Path) -> None:
    ours = {"a.png": "7", "b.png": "1", "c.png": "4"}
    theirs = labels_of(table_of({"a.png": "7", "b.png": "2"}, tmp_path / "theirs.parquet"))

    check_labels("Ray Data", dict(ours), ours)
    message = "Ray Data must give the labels that score gives, got 2 others: b.png '2' for '1', c.png None for '4'"
    with pytest.raises(WrongLabels, match=f"^{re.escape(message)}$"):
        check_labels("Ray Data", theirs, ours)


def test_speed_of_a_refused_peer_does_not_count() -> None:
    bare = Bare(runtime=100.0, layout=Layout(2, 1), decoding=300.0, pillow=310.0)
    refused = {"by": "Ray Data", "form": "files", "refused": "others"}
    ran = bench.Ran(images=90, seconds=1.0, command_seconds=2.0, peak_mb=200.4, labels={})

    good = row_of({"by": "Ray Data", "form": "files"}, ran, bare)

    assert row_of(refused, ran, bare) == refused
    assert good == {
        "by": "Ray Data", "form": "files", "images_per_second": 90.0, "command_images_per_second": 45.0, "ratio": 0.9,
        "ratio_of_both": 1.2, "peak_mb": 200,
    }  # fmt: skip
    assert unless_refused([good, refused, good]) == refused
    assert unless_refused([good, good | {"ratio": 0.8}, good | {"ratio": 0.7}])["ratio"] == 0.8


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no images here')"]

    with pytest.raises(RuntimeError, match=r"must succeed, got exit code 1:\nno images here"):
        run(command, tmp_path / "none.parquet")


def test_a_command_without_a_summary_is_timed_from_outside(tmp_path: Path) -> None:
    table = table_of({"a.png": "7"}, tmp_path / "table.parquet")

    ran = run([sys.executable, "-c", "print('done')"], table)

    assert (ran.images, ran.labels) == (1, {"a.png": "7"})
    assert ran.seconds == ran.command_seconds > 0
    assert not table.exists()
    assert summary_of('scoring\n{"images": 3, "seconds": 0.5}\n') == {"images": 3, "seconds": 0.5}


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        (["Spark"], "--peer must be Ray Data or DataLoader, got Spark"),
        (["Ray Data"], "--peer Ray Data must have pandas, which it imports, got none: pip install pandas"),
    ],
)
def test_peers_that_cannot_run_are_refused(peers: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_peers(peers)


def test_ray_data_gives_our_labels(digits: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="Ray Data imports it")
    ran = run(PEERS["Ray Data"](digits.files, MNIST, tmp_path / "answers"), tmp_path / "answers")

    predictor = Predictor.open(MNIST)
    keys = {path.relative_to(digits.files).as_posix(): path.read_bytes() for path in digits.paths()}
    answers = [answer for answer in predictor.predict(list(keys.values())) if isinstance(answer, dict)]
    check_labels("Ray Data", ran.labels, dict(zip(keys, [answer["label"] for answer in answers], strict=True)))


# Beside a server


def test_arrivals_come_at_the_rate_asked_for_and_are_seeded() -> None:
    times = arrivals(200, 50, seed=1)

    assert times == arrivals(200, 50, seed=1) != arrivals(200, 50, seed=2)
    assert len(times) == pytest.approx(10_000, abs=400)  # four standard deviations
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential


def test_a_server_is_asked_beside_scoring_and_what_is_scored_is_counted(
    server: Server, digits: ImageSet, bundle_dir: Path, tmp_path: Path
) -> None:
    names, image = tmp_path / "names.txt", digits.paths()[0].read_bytes()
    write_names(names, digits.paths(), 100_000)
    question = Ask("PNG", "/predictions/tiny-mda-ts", image)

    alone, beside = (
        measure_beside(server.url, question, names, bundle_dir, options, per_second=20, seconds=1)
        for options in (None, ())
    )

    assert alone["answers"] == beside["answers"] == len(arrivals(20, 1, seed=0))
    assert alone["failed"] == beside["failed"] == 0
    assert alone["scored_per_second"] == 0 < beside["scored_per_second"]
    assert 0 < beside["p50_ms"] <= beside["p99_ms"]


class Stalling(BaseHTTPRequestHandler):
    """Stands for a server that answers nobody until all have asked, which a real one does not do when told to."""

    protocol_version = "HTTP/1.1"
    everybody = 0
    asked = 0
    lock = threading.Lock()
    gate = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            Stalling.asked += 1
        if Stalling.asked == Stalling.everybody:
            self.gate.set()
        self.gate.wait(30)
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stalling() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        Stalling.gate.clear()
        Stalling.asked, Stalling.everybody = 0, len(arrivals(200, 0.2, seed=3))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_slow_server_is_asked_all_the_same_and_latency_counts_from_when_a_request_was_due(stalling: str) -> None:
    due = arrivals(200, 0.2, seed=3)

    offered = offer(stalling, Ask("PNG", "/", b"image"), per_second=200, seconds=0.2, seed=3)

    assert (len(offered.latencies_ms), offered.failed) == (len(due), 0)
    assert 10 < len(due) < 60  # fewer than can be on their way at once
    waits = [1000 * (due[-1] - one) for one in reversed(due)]  # until the last has asked, the shortest first
    assert all(latency > wait for latency, wait in zip(sorted(offered.latencies_ms), waits, strict=True))
    assert offered.percentile(50) > waits[len(waits) // 2 - 1]


def test_answers_that_are_no_answers_are_counted_apart(stalling: str) -> None:
    offered = offer(stalling, Ask("PNG", "/broken", b"image"), per_second=200, seconds=0.2, seed=3)

    assert (offered.failed, offered.latencies_ms) == (Stalling.everybody, [])


def test_a_server_that_answers_nobody_is_no_server_to_measure(stalling: str, tmp_path: Path) -> None:
    broken = Ask("PNG", "/broken", b"image")
    with pytest.raises(RuntimeError, match=r"^the server must answer, got \d+ requests without an answer$"):
        measure_beside(stalling, broken, tmp_path, MNIST, None, per_second=200, seconds=0.2, seed=3)
