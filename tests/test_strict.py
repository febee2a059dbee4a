"""Strict requests to a real TorchServe: every form of nonsense gets its own answer, and nobody else suffers of it."""

import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from conftest import ROOT, described, encoded, workers_of
from hypothesis import HealthCheck, Phase, settings
from PIL import Image, PngImagePlugin
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from test_server import assert_same, b64, error_of, post

from serving.predictor import Predictor
from serving.torchserve.state import Server

MODEL = "tiny-mda"
EXAMPLES = 75  # of each of the four addresses
UNKNOWN_PATH = "Requested resource is not found, please refer to API document."


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor.open(bundle_dir, threads=1)


@pytest.fixture(autouse=True)
def same_workers(server: Server) -> Iterator[None]:
    """No test here may cost a worker its life."""
    before = worker_pids(server)
    yield
    assert worker_pids(server) == before


def worker_pids(server: Server) -> list[int]:
    workers = [worker for name in server.models for worker in workers_of(server, name)]
    assert all(worker["status"] == "READY" for worker in workers)
    return [worker["pid"] for worker in workers]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


PNG, JPEG = encoded(noise(24, 31)), encoded(noise(64, 64, 3), "JPEG")


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    """A PNG's chunk; `wrong` spoils its CRC."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)


def declared(width: int, height: int) -> bytes:
    """A PNG of 65 bytes that declares any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def wrong_pixel_crc() -> bytes:
    body = bytearray(PNG)
    body[PNG.index(b"IDAT") + 20] ^= 1
    return bytes(body)


def wrong_comment_crc() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    return encoded(noise(24, 31), pnginfo=info).replace(b"hello", b"jello")


BROKEN_PNG = "image must be a whole PNG image, got a broken one: "


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PNG[:-12], (400, "undecodable_image", f"{BROKEN_PNG}truncated")),
        (PNG[: len(PNG) // 2], (400, "undecodable_image", f"{BROKEN_PNG}truncated")),
        (PNG[:8], (400, "undecodable_image", f"{BROKEN_PNG}truncated")),
        (wrong_pixel_crc(), (400, "undecodable_image", f"{BROKEN_PNG}wrong CRC in IDAT")),
        (wrong_comment_crc(), (400, "undecodable_image", f"{BROKEN_PNG}wrong CRC in tEXt")),
        (
            PNG[:-12] + chunk(b"tEXt", b"Comment\0hello", wrong=1) + PNG[-12:],
            (400, "undecodable_image", f"{BROKEN_PNG}wrong CRC in tEXt"),
        ),
        (
            JPEG[: len(JPEG) // 2],
            (400, "undecodable_image", "image must be a whole JPEG image, got a broken one: image file is truncated"),
        ),
        (
            encoded(noise(8, 8), "GIF"),
            (415, "unsupported_image_type", "image must be PNG, JPEG or WebP, got bytes that start with b'GIF87a"),
        ),
        (
            b"I am no image",
            (415, "unsupported_image_type", "image must be PNG, JPEG or WebP, got bytes that start with b'I am no '"),
        ),
        (
            declared(8000, 5001),
            (413, "image_too_large", "image must have at most 40000000 pixels, got 8000 x 5001"),
        ),
        (
            declared(2**31 - 1, 2**31 - 1),
            (413, "image_too_large", "image must have at most 40000000 pixels, got 2147483647 x 2147483647"),
        ),
    ],
)
@pytest.mark.parametrize("content_type", ["image/png", None])
def test_an_image_that_is_refused_leaves_its_neighbours_alone(
    http: httpx.Client, predictor: Predictor, image: bytes, content_type: str | None, expected: tuple[int, str, str]
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda data: post(http, content=data, headers=headers), [PNG, image, image, PNG]))

    for response in responses:
        described(response)
    for refused in responses[1:3]:
        status, code, message = error_of(refused)
        assert (status, code) == expected[:2]
        assert message.startswith(expected[2])
    for answered in (responses[0], responses[3]):
        assert answered.status_code == 200
        assert_same(answered.json(), predictor.predict([PNG])[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1)])
def test_images_of_extreme_shapes_are_answered(
    http: httpx.Client, predictor: Predictor, shape: tuple[int, int]
) -> None:
    image = encoded(noise(*shape))

    assert_same(post(http, content=image).json(), predictor.predict([image])[0])


def test_of_an_animation_the_first_frame_is_answered(http: httpx.Client, predictor: Predictor) -> None:
    frames = [Image.fromarray(frame) for frame in noise(3, 16, 16)]
    stream = BytesIO()
    frames[0].save(stream, "WebP", save_all=True, append_images=frames[1:], lossless=True)

    assert b"ANMF" in stream.getvalue()
    first = encoded(np.asarray(frames[0]), "WebP", lossless=True)
    assert_same(post(http, content=stream.getvalue()).json(), predictor.predict([first])[0])


def test_more_pixels_than_a_request_may_have(http: httpx.Client) -> None:
    huge = encoded(np.zeros((5000, 8000), dtype=np.uint8))
    many = post(http, json={"instances": [b64(huge)] * 256})
    narrow = post(http, content=encoded(np.zeros((40_000_000, 1), dtype=np.uint8)))

    described(many)
    described(narrow)
    assert len(many.request.content) > 12e6
    assert error_of(many) == (
        413,
        "image_too_large",
        "images of one request must count at most 24000000 pixels together, got 40000000 by image 1 of 256: "
        "send fewer or smaller ones at a time",
    )
    message = "image must be at most 32768 pixels high and wide, got 1 x 40000000"
    assert error_of(narrow) == (413, "image_too_large", message)


def test_whole_numbers_beyond_all_bounds(http: httpx.Client) -> None:
    body = b'{"instances": [{"b64": "?"}], "parameters": {"top_k": ' + b"9" * 40 + b"}}"
    response = post(http, content=body, headers={"Content-Type": "application/json"})

    assert error_of(response) == (422, "bad_parameter", "top_k must be an integer of at least 1, got 1e+40")


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json"])
def test_fifty_megabytes_are_refused_without_a_word(http: httpx.Client, content_type: str) -> None:
    response = post(http, content=b" " * (50 * 2**20), headers={"Content-Type": content_type})

    described(response)
    assert (response.status_code, response.content) == (413, b"")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x", (400, "bad_request", "request body must be an object with \"instances\", got 'x'")),
        ({}, (400, "bad_request", 'request body must be an object with "instances", got {}')),
        ({"instances": {}}, (400, "bad_request", "instances must be a list, got {}")),
        ({"instances": [b64(PNG)] * 1000}, (400, "bad_request", "instances must hold 1 to 256 images, got 1000")),
        (
            {"instances": [b64(PNG)], "top_k": 1},
            (400, "bad_request", "request body must have no keys but instances and parameters, got ['top_k']"),
        ),
        (
            {"instances": [b64(PNG)], "parameters": []},
            (422, "bad_parameter", "parameters must be an object, got []"),
        ),
        (
            {"instances": [b64(PNG)], "parameters": {"top_k": 0}},
            (422, "bad_parameter", "top_k must be an integer of at least 1, got 0"),
        ),
        (
            {"instances": [b64(PNG)], "parameters": {"return": ["all"]}},
            (422, "bad_parameter", "return must be a list of "),
        ),
        (
            {"instances": [b64(PNG)], "parameters": {"temperature": 1}},
            (422, "bad_parameter", "parameter must be one of top_k, return, coverage, "),
        ),
    ],
)
def test_json_of_the_wrong_shape(http: httpx.Client, body: Any, expected: tuple[int, str, str]) -> None:
    response = post(http, json=body)

    described(response)
    status, code, message = error_of(response)
    assert (status, code) == expected[:2]
    assert message.startswith(expected[2])


def test_a_form_with_an_unknown_parameter(http: httpx.Client) -> None:
    response = post(http, files={"data": PNG}, data={"parameters": json.dumps({"temperature": 1})})

    message = "parameter must be one of top_k, return, coverage, atypical_below, accept, priors, got 'temperature'"
    assert error_of(response) == (422, "bad_parameter", message)


def test_each_wrong_instance_has_its_error_in_its_place(http: httpx.Client, predictor: Predictor) -> None:
    wrong: list[Any] = [
        {"b64": "a"}, {"b64": "!!!!"}, {"b64": "aGVsbG8"}, {"b64": "aGVs\nbG8="}, {"b64": 5}, {"x": "y"}, 1, None,
    ]  # fmt: skip

    response = post(http, json={"instances": [b64(PNG), *wrong, b64(PNG)]})
    described(response)
    first, *errors, last = response.json()["predictions"]
    assert_same([first, last], predictor.predict([PNG, PNG]))
    assert response.status_code == 200
    assert {entry["error"]["code"] for entry in errors} == {"undecodable_image"}
    starts = ["b64 must be base64 without line breaks, got "] * 4 + [
        'instance must be an object {"b64": "..."}, got '
    ] * 4
    assert all(entry["error"]["message"].startswith(start) for entry, start in zip(errors, starts, strict=True))


@pytest.mark.parametrize(
    ("path", "type_", "message"),
    [
        ("/predictions/nothing", "ModelNotFoundException", "Model not found: nothing"),
        ("/v1/models/nothing:predict", "ModelNotFoundException", "Model not found: nothing"),
        ("/v2/models/nothing/infer", "ModelNotFoundException", "Model not found: nothing"),
        (
            f"/predictions/{MODEL}/7",
            "ModelVersionNotFoundException",
            f"Model version: 7 does not exist for model: {MODEL}",
        ),
        (
            f"/predictions/{MODEL}/x",
            "ModelVersionNotFoundException",
            f"Model version: x does not exist for model: {MODEL}",
        ),
        ("/predictions", "ResourceNotFoundException", UNKNOWN_PATH),
        ("/nothing", "ResourceNotFoundException", UNKNOWN_PATH),
        ("/metrics", "ResourceNotFoundException", UNKNOWN_PATH),
        ("/models", "ResourceNotFoundException", UNKNOWN_PATH),
    ],
)
def test_what_is_not_there_is_torchserves_404(http: httpx.Client, path: str, type_: str, message: str) -> None:
    response = http.post(path, content=PNG)

    assert response.status_code == 404
    assert response.json() == {"code": 404, "type": type_, "message": message}


def test_a_method_that_carries_no_image_is_told_so(http: httpx.Client) -> None:
    for method in ("GET", "DELETE"):
        answer = error_of(http.request(method, f"/predictions/{MODEL}"))
        assert answer == (400, "undecodable_image", "image must not be empty, got 0 bytes")
    refused = http.get("/")
    assert (refused.status_code, refused.json()["type"]) == (405, "MethodNotAllowedException")


def head(size: int) -> bytes:
    return f"POST /predictions/{MODEL} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def connected(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=30)


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer that comes next; TorchServe does not close, even if it is asked to."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
        return status, json.loads(stream.read(int(headers["content-length"])))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_clients_that_go_away_harm_nobody(
    http: httpx.Client, server: Server, predictor: Predictor, share: float
) -> None:
    slow = encoded(np.zeros((1500, 1500), dtype=np.uint8))
    request = head(len(slow)) + slow
    for _ in range(12):
        with connected(server) as connection:
            connection.sendall(request[: int(len(request) * share)])
    answers = [post(http, content=PNG) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200] * 4
    for answer in answers:
        assert_same(answer.json(), predictor.predict([PNG])[0])


def test_a_slow_client_gets_its_answer_and_delays_nobody(
    http: httpx.Client, server: Server, predictor: Predictor
) -> None:
    image = encoded(noise(8, 8))

    def drip() -> tuple[int, dict[str, Any]]:
        with connected(server) as connection:
            for byte in head(len(image)) + image:
                connection.sendall(bytes([byte]))
                time.sleep(0.015)
            return answer_of(connection)

    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        slow = pool.submit(drip)
        seconds = []
        while not slow.done():
            asked = time.monotonic()
            assert post(http, content=PNG).status_code == 200
            seconds.append(time.monotonic() - asked)
        took = time.monotonic() - began
    status, answer = slow.result()

    assert status == 200
    assert_same(answer, predictor.predict([image])[0])
    assert took > 2
    assert len(seconds) > 20
    assert sorted(seconds)[len(seconds) // 2] < 0.1


schema = schemathesis.openapi.from_path(ROOT / "serving" / "openapi.yaml")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_the_description_allows_is_answered_as_it_says(case: schemathesis.Case, server: Server) -> None:
    case.path_parameters.update(
        {"model": "tiny-typical"} | ({"version": 1} if "version" in case.path_parameters else {})
    )
    with requests.Session() as session:
        session.trust_env = False
        response = case.call(base_url=server.url, session=session)

    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
