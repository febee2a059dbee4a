"""The HTTP behaviour, asked of a real TorchServe."""

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import described, encoded, openapi
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from serving.parameters import Accept, Options
from serving.predictor import Predictor
from serving.torchserve.state import Server

MODELS = ["tiny-mda", "tiny-mda-ts", "tiny-softmax", "tiny-typical"]


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """A client that checks every answer against the description of the interface."""
    with httpx.Client(
        base_url=server.url, timeout=60, trust_env=False, event_hooks={"response": [described]}
    ) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor.open(bundle_dir, threads=1)


def post(http: httpx.Client, model: str = "tiny-mda", **request: Any) -> httpx.Response:
    return http.post(f"/predictions/{model}", **request)


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def assert_same(answer: Any, expected: Any) -> None:
    """Equal but for the last digits of float32, in which batches of different sizes may differ."""
    if isinstance(expected, dict):
        assert list(answer) == list(expected)
        for key in expected:
            assert_same(answer[key], expected[key])
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_same(one, other)
    else:
        assert answer == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert response.headers["content-type"] == "application/json"
    return response.status_code, error["code"], error["message"]


def test_a_raw_body_is_answered_as_the_predictor_answers(
    http: httpx.Client, predictor: Predictor, images: list[bytes]
) -> None:
    response = post(http, content=images[0])

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert_same(response.json(), predictor.predict([images[0]])[0])


def test_a_body_that_curl_calls_a_form_is_what_it_is(http: httpx.Client, images: list[bytes]) -> None:
    called = {"Content-Type": "application/x-www-form-urlencoded"}  # by --data-binary and -d
    image = post(http, content=images[0], headers=called)
    text = post(http, content=json.dumps({"instances": [b64(images[0])]}).encode(), headers=called)

    assert (image.status_code, text.status_code) == (200, 200)
    assert image.json() == text.json()["predictions"][0] == post(http, content=images[0]).json()


def test_both_runtimes_answer_the_same(http: httpx.Client, images: list[bytes]) -> None:
    answer = {**post(http, content=images[0]).json(), "model": {"name": "tiny-mda-ts", "version": "1"}}

    assert_same(post(http, "tiny-mda-ts", content=images[0]).json(), answer)


def test_a_softmax_model_answers_without_components(http: httpx.Client, softmax_dir: Path, images: list[bytes]) -> None:
    answer = post(http, "tiny-softmax", content=images[0]).json()

    assert_same(answer, Predictor.open(softmax_dir, threads=1).predict([images[0]])[0])
    assert list(answer) == ["label", "probability", "top_k", "probabilities", "model"]


def test_held_out_images_give_answers_keys_of_their_own(
    http: httpx.Client, typical_dir: Path, images: list[bytes]
) -> None:
    predictor = Predictor.open(typical_dir, threads=1)
    priors = {"circle": 0.4, "cross": 0.3, "empty": 0.2, "noise": 0.1}
    parameters = {"coverage": 0.8, "atypical_below": 0.45, "accept": {"probability": 0.8, "typicality": 0.3}}
    plain = post(http, "tiny-typical", json={"instances": [b64(image) for image in images]})
    body = {"instances": [b64(image) for image in images], "parameters": parameters | {"priors": priors}}
    asked = post(http, "tiny-typical", json=body)

    options = Options(coverage=0.8, atypical_below=0.45, accept=Accept(0.8, 0.3), priors=tuple(priors.items()))
    assert_same(plain.json()["predictions"], predictor.predict(images))
    assert_same(asked.json()["predictions"], predictor.predict(images, options))
    assert {"typicality", "flags"} < set(plain.json()["predictions"][0])
    assert {"labels_at"} == set(asked.json()["predictions"][0]) - set(plain.json()["predictions"][0])
    flags = {flag for answer in asked.json()["predictions"] for flag in answer["flags"]}
    assert flags == {"atypical", "uncertain"}


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        (
            "tiny-mda",
            {"coverage": 0.9},
            "coverage must be left out, as tiny-mda has no held-out images to tell by, got ",
        ),
        ("tiny-softmax", {"atypical_below": 0.1}, "atypical_below must be left out, as tiny-softmax has no held-out "),
        ("tiny-mda", {"priors": {"cross": 1}}, "priors must be left out, as tiny-mda does not say those of its "),
        ("tiny-typical", {"coverage": 0.9999}, "coverage must be above 0 and at most 0.9"),
        (
            "tiny-typical",
            {"priors": {"cross": 1}},
            "priors must be of all labels of tiny-typical, got none of 'circle'",
        ),
    ],
)
def test_what_a_model_cannot_tell_refuses_the_request_as_a_whole(
    http: httpx.Client, images: list[bytes], model: str, parameters: dict[str, Any], message: str
) -> None:
    body = {"instances": [b64(images[0]), b64(b"text")], "parameters": parameters}

    status, code, said = error_of(post(http, model, json=body))
    assert (status, code) == (422, "bad_parameter")
    assert said.startswith(message)


def test_a_form_with_and_without_parameters(http: httpx.Client, predictor: Predictor, images: list[bytes]) -> None:
    plain = post(http, files={"data": images[0]})
    parameters = json.dumps({"top_k": 1, "return": ["features"]})
    chosen = post(http, files={"data": ("x.png", images[0], "image/png")}, data={"parameters": parameters})

    assert_same(plain.json(), predictor.predict([images[0]])[0])
    assert_same(chosen.json(), predictor.predict([images[0]], Options(1, frozenset({"features"})))[0])


def test_timings_by_a_form_and_by_json(http: httpx.Client, images: list[bytes]) -> None:
    wanted = {"return": ["timings"]}
    form = post(http, files={"data": images[0]}, data={"parameters": json.dumps(wanted)}).json()
    several = post(http, json={"instances": [b64(images[0])], "parameters": wanted}).json()["predictions"][0]

    for answer in (form, several):
        assert answer["timings"].keys() == {"decode", "inference", "encode"}
        assert all(0 <= value < 60_000 for value in answer["timings"].values())


def test_json_with_a_broken_image_among_good_ones(
    http: httpx.Client, predictor: Predictor, images: list[bytes]
) -> None:
    instances = [b64(images[0]), b64(images[1][:50]), b64(images[2])]

    response = post(http, json={"instances": instances, "parameters": {"top_k": 2}})
    first, broken, last = response.json()["predictions"]
    expected = predictor.predict([images[0], images[2]], Options(top_k=2))
    assert response.status_code == 200
    assert_same([first, last], expected)
    assert broken["error"]["code"] == "undecodable_image"


def test_the_description_is_valid() -> None:
    validate(openapi())


def test_the_open_inference_address(http: httpx.Client, predictor: Predictor, images: list[bytes]) -> None:
    tensor = {"name": "images", "shape": [2], "datatype": "BYTES", "data": [b64(image)["b64"] for image in images[:2]]}
    answer = http.post("/v2/models/tiny-mda/infer", json={"inputs": [tensor], "id": "7"}).json()

    expected = predictor.predict(images[:2])
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny-mda", "1")
    assert outputs["label"] == [result["label"] for result in expected if isinstance(result, dict)]
    assert_same(outputs["log_density"], [result["log_density"] for result in expected if isinstance(result, dict)])
    refused = http.post("/v2/models/tiny-mda/infer", json={"inputs": [{**tensor, "data": ["", ""]}]})
    assert (refused.status_code, refused.json()["error"][:27]) == (400, "undecodable_image: images[0")


def test_the_kserve_address_answers_too(http: httpx.Client, images: list[bytes]) -> None:
    body = {"instances": [b64(images[0])]}

    assert http.post("/v1/models/tiny-mda:predict", json=body).json() == post(http, json=body).json()


def test_the_version_may_be_named(http: httpx.Client, images: list[bytes]) -> None:
    assert post(http, "tiny-mda/1", content=images[0]).json() == post(http, content=images[0]).json()


def test_a_jpeg_and_a_large_photo(http: httpx.Client, predictor: Predictor) -> None:
    photo = encoded(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8), "JPEG")

    assert_same(post(http, content=photo).json(), predictor.predict([photo])[0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"content": b""}, (400, "undecodable_image", "image must not be empty, got 0 bytes")),
        (
            {"content": b"hello", "headers": {"Content-Type": "text/plain"}},
            (415, "unsupported_image_type", "image must be PNG, JPEG or WebP, got bytes that start with b'hello'"),
        ),
        (
            {"content": bytes(10 * 2**20 + 1)},
            (413, "image_too_large", "image must have at most 10485760 bytes, got 10485761"),
        ),
        (
            {"content": b'{"instances": [', "headers": {"Content-Type": "application/json"}},
            (400, "bad_request", "request body must be JSON, got b'{\"instances\": [' ("),
        ),
        ({"json": {"instances": []}}, (400, "bad_request", "instances must hold 1 to 256 images, got 0")),
        ({"json": {"instances": [{}] * 257}}, (400, "bad_request", "instances must hold 1 to 256 images, got 257")),
        ({"json": [1]}, (400, "bad_request", 'request body must be an object with "instances", got [1]')),
        (
            {"json": {"instances": [{}], "parameters": {"k": 1}}},
            (422, "bad_parameter", "parameter must be one of top_k, return, coverage, "),
        ),
        ({"files": {"image": b"x"}}, (400, "bad_request", "request must be an image as body, a form field ")),
        (
            {"data": {"x": "y"}},
            (415, "unsupported_image_type", "image must be PNG, JPEG or WebP, got bytes that start "),
        ),
    ],
)
def test_what_cannot_be_answered(
    http: httpx.Client, model: str, request_: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    status, code, message = error_of(post(http, model, **request_))

    assert (status, code) == expected[:2]
    assert message.startswith(expected[2])


def test_a_truncated_image_alone(http: httpx.Client, images: list[bytes]) -> None:
    assert error_of(post(http, content=images[0][:50]))[:2] == (400, "undecodable_image")


def test_a_lone_broken_instance_sets_the_status(http: httpx.Client) -> None:
    response = post(http, json={"instances": [{"b64": "?"}]})

    assert response.status_code == 400
    assert [entry["error"]["code"] for entry in response.json()["predictions"]] == ["undecodable_image"]


def test_an_unknown_model_and_version_are_torchserves_404(http: httpx.Client, images: list[bytes]) -> None:
    assert post(http, "nothing", content=images[0]).status_code == 404
    assert post(http, "tiny-mda/7", content=images[0]).status_code == 404


def test_a_body_beyond_the_servers_limit_is_torchserves_413(http: httpx.Client) -> None:
    assert post(http, content=bytes(17 * 2**20)).status_code == 413


def test_requests_that_meet_in_a_batch_do_not_harm_each_other(
    http: httpx.Client, predictor: Predictor, images: list[bytes]
) -> None:
    bodies: list[dict[str, Any]] = [{"content": image} for image in images]
    bodies[2] = {"content": images[2][:60]}
    bodies[4] = {"content": b"{", "headers": {"Content-Type": "application/json"}}
    bodies[6] = {"json": {"instances": [b64(images[6]), b64(b""), b64(images[0])]}}

    for _ in range(3):
        with ThreadPoolExecutor(len(bodies)) as pool:
            responses = list(pool.map(lambda body: post(http, **body), bodies))
        assert [response.status_code for response in responses] == [200, 200, 400, 200, 400, 200, 200, 200]
        for n in (0, 1, 3, 5, 7):
            assert_same(responses[n].json(), predictor.predict([images[n]])[0])
        several = responses[6].json()["predictions"]
        assert_same([several[0], several[2]], predictor.predict([images[6], images[0]]))


def test_many_concurrent_requests_get_their_own_answers(
    http: httpx.Client, predictor: Predictor, images: list[bytes]
) -> None:
    expected = predictor.predict(images)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: post(http, content=images[n % len(images)]).json(), range(96)))
    for n, answer in enumerate(answers):
        assert_same(answer, expected[n % len(images)])


def test_models_cannot_be_added_or_removed_from_outside(server: Server) -> None:
    url = f"{server.management_url}/models"

    assert httpx.post(url, params={"url": "http://127.0.0.1:1/x.mar"}, trust_env=False).status_code == 405
    assert httpx.delete(f"{url}/tiny-mda", trust_env=False).status_code == 405


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(server: Server) -> Samples:
    """Every sample that Prometheus would read, by its name and labels."""
    text = httpx.get(server.metrics_url, trust_env=False).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def test_metrics_count_what_was_asked_and_answered(
    http: httpx.Client, server: Server, predictor: Predictor, images: list[bytes]
) -> None:
    before = scraped(server)
    post(http, content=images[0])
    post(http, content=b"text")
    post(http, json={"instances": [b64(images[1]), b64(b""), b64(images[2])]})
    after = scraped(server)

    def grown(name: str, **labels: str) -> float:
        key = (f"discriminant_{name}", frozenset({"model": "tiny-mda", "version": "1", **labels}.items()))
        return after.get(key, 0) - before.get(key, 0)

    deadline = time.monotonic() + 10
    while grown("images_total") < 3 and time.monotonic() < deadline:  # they are counted after the answer
        after = scraped(server)

    answers = predictor.predict(images[:3])
    confident = sum(answer["probability"] <= 0.9 for answer in answers if isinstance(answer, dict))
    dense = sum(answer["log_density"] for answer in answers if isinstance(answer, dict))
    assert (grown("requests_total", status="200"), grown("requests_total", status="415")) == (2, 1)
    assert grown("images_total") == 3
    assert grown("image_errors_total", code="unsupported_image_type") == 1
    assert grown("image_errors_total", code="undecodable_image") == 1
    assert grown("confidence_count") == 3
    assert grown("confidence_bucket", le="0.9") == confident
    assert grown("log_density_nats_sum") == pytest.approx(dense, rel=1e-4)
    for label, component in {(a["label"], a["component"]) for a in answers if isinstance(a, dict)}:
        expected = sum((a["label"], a["component"]) == (label, component) for a in answers if isinstance(a, dict))
        assert grown("components_total", label=label, component=str(component), component_name="") == expected
    assert grown("batch_images_sum") == 5
    for stage in ("decode", "inference", "encode"):
        assert grown("stage_seconds_count", stage=stage) >= 2
        assert 0 < grown("stage_seconds_sum", stage=stage) < 60


def test_typicality_is_counted(http: httpx.Client, server: Server, typical_dir: Path, images: list[bytes]) -> None:
    labels = frozenset({"model": "tiny-typical", "version": "1"}.items())
    before = scraped(server).get(("discriminant_typicality_sum", labels), 0)
    post(http, "tiny-typical", json={"instances": [b64(image) for image in images]})

    answers = Predictor.open(typical_dir, threads=1).predict(images)
    expected = sum(answer["typicality"] for answer in answers if isinstance(answer, dict))
    deadline = time.monotonic() + 10
    grown = 0.0
    while grown == 0 and time.monotonic() < deadline:  # they are counted after the answer
        grown = scraped(server).get(("discriminant_typicality_sum", labels), 0) - before
    assert grown == pytest.approx(expected, rel=1e-4)


def test_metrics_tell_which_workers_are_ready_and_what_torchserve_counts(server: Server) -> None:
    samples = scraped(server)

    for model in MODELS:
        labels = frozenset({"model": model, "version": "1"}.items())
        assert samples["discriminant_workers", labels] == samples["discriminant_workers_ready", labels] == 1
    waited = {
        name: value
        for (name, labels), value in samples.items()
        if name.startswith("ts_queue_latency_seconds") and ("model_name", "tiny-mda") in labels
    }
    assert 0 < waited["ts_queue_latency_seconds_sum"] < 60 * waited["ts_queue_latency_seconds_count"]


def test_ready_over_http(server: Server) -> None:
    base = server.metrics_url.removesuffix("/metrics")
    answer = httpx.get(f"{base}/ready", trust_env=False)

    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    assert [(one["name"], one["ready"]) for one in answer.json()["models"]] == [(model, 1) for model in MODELS]
    assert httpx.get(f"{base}/live", trust_env=False).status_code == 200
    assert httpx.get(f"{base}/other", trust_env=False).status_code == 404


def test_each_request_leaves_one_line_of_json_and_nothing_else(
    http: httpx.Client, state: Path, images: list[bytes]
) -> None:
    log = state / "logs" / "requests.jsonl"
    before = {file: file.stat().st_size for file in (state / "logs").iterdir() if file != log}
    post(http, content=images[0], headers={"X-Request-Id": "mine"})
    bodies = {"instances": [b64(images[0]), b64(b"")]}
    own = post(http, json=bodies).headers["x-request-id"]
    post(http, content=b"secret text", headers={"x-request-id": "broken"})

    wanted = ["mine", own, "broken"]
    deadline = time.monotonic() + 10
    found: dict[str, Any] = {}
    while set(wanted) - set(found) and time.monotonic() < deadline:
        found = {(line := json.loads(text))["request_id"]: line for text in log.read_text().splitlines()}
    lines = [found[name] for name in wanted]
    assert [(line["status"], line["images"], line["errors"]) for line in lines] == [
        (200, 1, []),
        (200, 2, ["undecodable_image"]),
        (415, 1, ["unsupported_image_type"]),
    ]
    assert {(line["level"], line["model"], line["version"]) for line in lines} == {("INFO", "tiny-mda", "1")}
    assert all(0 < line["seconds"] < 60 and 1 <= line["batch"] <= 8 for line in lines)
    assert "secret" not in log.read_text()
    assert {file: file.stat().st_size for file in (state / "logs").iterdir() if file in before} == before
