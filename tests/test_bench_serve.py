"""The benchmark of serving: the images that it sends, and how its table tells them apart."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from load_tests.asked.sent_images import CAMERA, PHOTO_BYTES, Sent, encode_image, shape
from load_tests.wrk import ask
from serving.bundle import Bundle
from serving.preprocess import read_image
from training.speed_tables import serving_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(ROOT / "model_store" / "cifar100-lda-best" / "1")


def test_shape_arrives_as_it_is(bundle: Bundle) -> None:
    file = encode_image(Sent.shape, bundle)

    np.testing.assert_array_equal(read_image(file, bundle.manifest.input), shape(bundle))


def test_photo_has_the_models_size_and_nearly_the_bytes_that_it_says(bundle: Bundle) -> None:
    wide = bundle.manifest.model_copy(
        update={"input": bundle.manifest.input.model_copy(update={"height": 224, "width": 224})}
    )

    file = encode_image(Sent.photo, Bundle(bundle.path, wide))

    with Image.open(BytesIO(file)) as photo:
        assert (photo.format, photo.size) == ("JPEG", (224, 224))
    assert len(file) == pytest.approx(PHOTO_BYTES, rel=0.1)


def test_camera_photo_has_twelve_megapixels_and_is_taken(bundle: Bundle) -> None:
    file = encode_image(Sent.camera, bundle)

    with Image.open(BytesIO(file)) as photo:
        assert (photo.format, photo.size[::-1]) == ("JPEG", CAMERA)
        assert photo.size[0] * photo.size[1] == 12_000_000
    assert 2_000_000 < len(file) < 6_000_000
    assert read_image(file, bundle.manifest.input).shape == (3, 32, 32)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_refused_requests_are_no_answers(tmp_path: Path) -> None:
    sent: Counter[int] = Counter()

    class EverySecond(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = 413 if sent[200] > sent[413] else 200
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            sent[status] += 1

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "image").write_bytes(b"some")
    with HTTPServer(("127.0.0.1", 0), EverySecond) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        load = ask(f"http://127.0.0.1:{server.server_port}/", tmp_path / "image", connections=1, seconds=1)

        server.shutdown()
    assert sent[200] > 10
    assert abs(load.failed - sent[413]) <= 1  # the last one may come after the end
    assert abs(load.per_second - sent[200]) < 0.1 * sent[200]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_command_that_is_told_to_end_leaves_nothing_running(bundle_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "load_tests", "serve", "--bundle", str(bundle_dir), "--seconds", "60"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any("org.pytorch.serve.ModelServer" in one for one in commands_below(tmp_path)):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)

    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)

    assert running.returncode == 1
    assert errors.endswith("error: a signal came; nothing is left running\n")
    assert commands_below(tmp_path) == []


def commands_below(folder: Path) -> list[str]:
    """The command lines that name something in a folder."""
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if f"{folder}/" in line]


def test_table_says_which_photo_was_sent() -> None:
    row = dict.fromkeys(("connections", "answers_per_second", "bare_per_second", "ratio", "p50_ms", "p99_ms"), 1)
    record = {"bundle": "gone:1", "precision": "float32", "machine": "some", "rows": [row | {"bare_ms": 2}]}
    photo = record | {"image": "camera", "image_bytes": 3_398_716}

    table = serving_table({"serving": {"gone:1 float32 cpu": record, "gone:1 float32 cpu camera": photo}})

    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == [
        "| `gone:1` ‡",
        "| `gone:1` ‡, camera of 3,399 kB",
    ]
