"""The data plane, without any server: requests in, replies out."""

import json
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, encoded
from prometheus_client import CollectorRegistry

from serving.answer_size import AnswerSizes, longest_answer
from serving.bundle import Bundle
from serving.data_plane import DataPlane
from serving.errors import Draining
from serving.limits import Limits
from serving.metrics import Metrics
from serving.parameters import Options
from serving.predictor import Predictor
from serving.request import Message, Request
from serving.request_log import REQUESTS_FILE, RequestLog
from serving.respond import EACH
from serving.triton.message import Outputs, TensorMessage

LABELS = {"model": "tiny-mda", "version": "1"}
UNEXPECTED = {"code": "internal_error", "message": "the server failed to answer this request; its log says why"}


@pytest.fixture
def plane(bundle_dir: Path) -> DataPlane:
    return DataPlane(Predictor(Bundle.load(bundle_dir), threads=1, limits=Limits(max_request_pixels=1000)))


def answers(plane: DataPlane, *messages: Message) -> list[tuple[int, Any]]:
    replies = plane.answer(messages)
    assert {reply.content_type for reply in replies} <= {"application/json"}
    return [(reply.status, json.loads(reply.body)) for reply in replies]


def instances(*images: bytes) -> Message:
    body = {"instances": [{"b64": b64encode(image).decode()} for image in images]}
    return Message(json.dumps(body).encode(), content_type="application/json")


def test_it_needs_no_server() -> None:
    script = (
        "import sys, serving.data_plane; print([m for m in sys.modules if m.split('.')[0] == 'ts' or 'torch' in m])"
    )

    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_one_batch_of_every_form(plane: DataPlane, images: list[bytes]) -> None:
    form = Message(parts={"data": images[1], "parameters": b'{"top_k": 1}'})
    batch = [Message(images[0]), Message(b"{"), form, Message(b"text"), instances(images[2], b"")]

    raw, broken, chosen, unknown, several = answers(plane, *batch)
    assert [status for status, _ in (raw, broken, chosen, unknown, several)] == [200, 400, 200, 415, 200]
    assert broken[1]["error"]["code"] == "bad_request"
    assert unknown[1]["error"]["code"] == "unsupported_image_type"
    assert len(chosen[1]["top_k"]) == 1
    assert several[1]["predictions"][1]["error"]["code"] == "undecodable_image"
    expected = plane.predictor.predict(images[:3])
    found = [raw[1], chosen[1], several[1]["predictions"][0]]
    assert [one["label"] for one in found] == [one["label"] for one in expected if isinstance(one, dict)]


def test_timings_are_those_of_the_batch_for_those_who_ask(
    plane: DataPlane, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = plane.predictor.infer
    monkeypatch.setattr(plane.predictor, "infer", lambda batch: (time.sleep(0.03), infer(batch))[1])
    wanted = {"return": ["timings"]}
    form = Message(parts={"data": images[0], "parameters": json.dumps(wanted).encode()})
    several = json.loads(instances(images[1], b"text").body or b"") | {"parameters": wanted}
    began = time.perf_counter()

    chosen, both, plain = answers(plane, form, Message(json.dumps(several).encode()), Message(images[2]))

    elapsed_ms = 1000 * (time.perf_counter() - began)
    timings = chosen[1]["timings"]
    assert list(timings) == ["decode", "inference", "encode"]
    assert all(value >= 0 for value in timings.values())
    assert 30 <= timings["inference"] <= sum(timings.values()) <= elapsed_ms
    answer, error = both[1]["predictions"]
    assert answer["timings"] == timings
    assert error.keys() == {"error"}
    assert "timings" not in plain[1]
    assert "probabilities" not in chosen[1]


def test_timings_are_within_the_length_that_an_answer_may_have(plane: DataPlane, images: list[bytes]) -> None:
    options = Options(returns=frozenset({"timings"}))
    head, each = AnswerSizes(plane.predictor.bundle.manifest, Limits()).of(Request(images[:1], options, EACH))

    longest = longest_answer(plane.predictor.bundle.manifest, options)

    assert longest["timings"].keys() == {"decode", "inference", "encode"}
    assert head + each >= len(json.dumps({"predictions": [longest]}, separators=(",", ":")))


def test_a_list_of_too_many_pixels_gets_one_error(plane: DataPlane, images: list[bytes]) -> None:
    large = encoded(np.zeros((30, 40), dtype=np.uint8))

    refused, neighbour = answers(plane, instances(images[0], large, images[1]), Message(images[2]))
    assert (refused[0], neighbour[0]) == (413, 200)
    message = "images of one request must count at most 1000 pixels together, got 1264 by image 2 of 3: "
    assert refused[1]["error"]["code"] == "image_too_large"
    assert refused[1]["error"]["message"].startswith(message)


def test_so_does_a_tensor_in_its_own_form(plane: DataPlane) -> None:
    large = b64encode(encoded(np.zeros((30, 40), dtype=np.uint8))).decode()
    body = {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [large]}]}

    [(status, answered)] = answers(plane, Message(json.dumps(body).encode()))
    assert status == 413
    assert answered["error"].startswith("image_too_large: images of one request must count at most 1000 pixels ")


def test_a_failure_of_one_request_is_its_own(
    plane: DataPlane, images: list[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, infer = plane.predictor.decode(images[1]), plane.predictor.infer

    def fail_on_poison(batch: np.ndarray) -> Any:
        if any(np.array_equal(image, poison) for image in batch):
            raise RuntimeError("out of order")
        return infer(batch)

    monkeypatch.setattr(plane.predictor, "infer", fail_on_poison)

    first, second, last = answers(plane, Message(images[0]), instances(images[1]), Message(images[2]))
    assert (first[0], last[0]) == (200, 200)
    assert second == (500, {"error": UNEXPECTED})
    assert "out of order" in caplog.text


def test_a_transport_may_have_requests_and_replies_of_its_own(bundle_dir: Path, images: list[bytes]) -> None:
    bundle, registry = Bundle.load(bundle_dir), CollectorRegistry()
    plane = DataPlane(Predictor(bundle, threads=1), Metrics(bundle.manifest, registry))
    outputs = Outputs(bundle.manifest)
    wanted = [None, frozenset({"label"}), frozenset({"answer", "component"}), frozenset({"typicality"})]
    data = [[images[0], b"text", images[1]], [images[0], b"text"], [b"", images[0]], images]
    messages = [TensorMessage(*both, {}, outputs) for both in zip(data, wanted, strict=True)]

    plain, refused, chosen, unknown = plane.exchange(messages, lambda status, body: (status, body))
    plane.close()
    first = plane.predictor.predict(images[:1])[0]
    assert isinstance(first, dict)
    assert list(plain[1]) == ["label", "posterior", "component", "responsibilities", "log_density", "error"]
    assert (plain[0], plain[1]["label"][0], plain[1]["label"][1]) == (200, first["label"], "")
    assert json.loads(plain[1]["error"][1])["code"] == "unsupported_image_type"
    assert np.shape(plain[1]["responsibilities"]) == (3, 4, 2)
    assert (refused[0], refused[1]["error"]["code"]) == (415, "unsupported_image_type")
    assert refused[1]["error"]["message"].startswith("images[1]: image must be ")
    assert chosen[1]["component"] == [-1, first["component"]]
    assert [next(iter(json.loads(text))) for text in chosen[1]["answer"]] == ["error", "label"]
    message = "outputs must be tensors that this model has, got 'typicality'"
    assert unknown == (400, {"error": {"code": "bad_request", "message": message}})
    assert registry.get_sample_value("discriminant_requests_total", {**LABELS, "status": "200"}) == 2


def test_a_message_that_cannot_even_be_read(plane: DataPlane, images: list[bytes]) -> None:
    wrong: Any = 7

    assert answers(plane, Message(b"{}", json_length=wrong), Message(images[0]))[0] == (500, {"error": UNEXPECTED})


def test_all_of_a_batch_may_be_refused_unread(plane: DataPlane, images: list[bytes]) -> None:
    replies = plane.answer([Message(images[0]), Message(b"{")], Draining())

    assert [reply.status for reply in replies] == [503, 503]
    assert {json.loads(reply.body)["error"]["code"] for reply in replies} == {"draining"}


def test_where_there_is_no_time_each_request_is_refused_in_its_form_and_small_ones_are_answered(
    bundle_dir: Path, images: list[bytes]
) -> None:
    plane = DataPlane(Predictor(Bundle.load(bundle_dir), threads=1), batch_size=2)
    with plane._budget.batch([10**9] * 2):  # which takes seconds to arrive
        pass
    large = encoded(np.zeros((1000, 1000), dtype=np.uint8))
    data = [b64encode(large).decode()]
    tensors = {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": data}]}
    unread = Message(json.dumps(tensors).encode() + b" " * 10**7)

    alone, several, tensor, last, small = answers(
        plane, Message(large), instances(large), Message(json.dumps(tensors).encode()), unread, Message(images[0])
    )
    error = {
        "code": "overloaded",
        "message": "the server has too much to do for this request: send it again in a moment",
    }
    assert alone == several == last == (503, {"error": error})
    assert tensor == (503, {"error": f"overloaded: {error['message']}"})
    assert small[0] == 200


def test_each_request_is_counted_and_logged(bundle_dir: Path, images: list[bytes], tmp_path: Path) -> None:
    registry = CollectorRegistry()
    bundle = Bundle.load(bundle_dir)
    log = RequestLog(tmp_path, "m", "1")
    plane = DataPlane(Predictor(bundle, threads=1), Metrics(bundle.manifest, registry), log)
    plane.answer([Message(images[0], request_id="a"), Message(b"{", request_id="b")])
    plane.close()
    log.close()

    lines = [json.loads(line) for line in (tmp_path / REQUESTS_FILE).read_text().splitlines()]
    seen = [(line["request_id"], line["status"], line["images"], line["errors"], line["batch"]) for line in lines]
    assert seen == [("a", 200, 1, [], 2), ("b", 400, 1, ["bad_request"], 2)]
    assert registry.get_sample_value("discriminant_requests_total", {**LABELS, "status": "200"}) == 1
    assert registry.get_sample_value("discriminant_image_errors_total", {**LABELS, "code": "bad_request"}) == 1
    assert registry.get_sample_value("discriminant_batch_images_sum", LABELS) == 2
