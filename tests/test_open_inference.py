"""The Open Inference Protocol: requests read, answers as tensors."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from conftest import COMPONENT_NAMES, LABELS, gmm_answers, held_out, typical_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import BadRequest, ServingError
from serving.predictor import Predictor
from serving.request import Message, Request, read


def tensors(data: Any, shape: Any = None, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": shape or [len(data)], "datatype": "BYTES", "data": data}
    return {"inputs": [tensor], **changes}


def b64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def asked(body: Any) -> Request:
    return read(Message(json.dumps(body).encode(), content_type="application/json"))


def in_binary(images: list[bytes], size: int | None = None) -> Request:
    binary = b"".join(struct.pack("<I", len(image)) + image for image in images)
    body = tensors([])
    del body["inputs"][0]["data"]
    body["inputs"][0] |= {"shape": [len(images)], "parameters": {"binary_data_size": size or len(binary)}}
    text = json.dumps(body).encode()
    return read(Message(text + binary, json_length=str(len(text))))


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor.open(bundle_dir, threads=1)


def answer(predictor: Predictor, request: Request) -> tuple[int, dict[str, Any]]:
    [outcome] = predictor.predict_together([(request.images, request.options)])
    return request.reply(outcome)


def test_the_tensors_are_the_graphs_outputs(predictor: Predictor, images: list[bytes]) -> None:
    status, body = answer(predictor, asked(tensors([b64(image) for image in images[:3]], id="7")))

    expected = gmm_answers(np.stack([predictor.decode(image) for image in images[:3]]))
    outputs = {output["name"]: output for output in body["outputs"]}
    assert status == 200
    assert {key: body[key] for key in ("id", "model_name", "model_version")} == {
        "id": "7",
        "model_name": "tiny-mda",
        "model_version": "1",
    }
    assert list(outputs) == ["label", "posterior", "component", "responsibilities", "log_density"]
    for name in ("posterior", "responsibilities", "log_density"):
        assert outputs[name]["datatype"] == "FP32"
        found = np.reshape(outputs[name]["data"], outputs[name]["shape"])
        assert found == pytest.approx(expected[name], abs=1e-4), name
    winners = expected["posterior"].argmax(1)
    assert outputs["label"]["data"] == [LABELS[winner] for winner in winners]
    assert outputs["label"]["datatype"] == "BYTES"
    best = expected["responsibilities"][np.arange(3), winners].argmax(1).tolist()
    assert (outputs["component"]["data"], outputs["component"]["shape"]) == (best, [3])


def test_only_the_tensors_that_are_asked_for(predictor: Predictor, images: list[bytes]) -> None:
    names = [{"name": "features"}, {"name": "label"}]
    _, body = answer(predictor, asked(tensors([b64(images[0])], outputs=names)))

    assert [(output["name"], output["shape"]) for output in body["outputs"]] == [("features", [1, 3]), ("label", [1])]
    assert "id" not in body


def test_binary_tensors_are_the_same_request(predictor: Predictor, images: list[bytes]) -> None:
    request = in_binary(images[:2])

    assert list(request.images) == images[:2]
    assert answer(predictor, request) == answer(predictor, asked(tensors([b64(image) for image in images[:2]])))


def test_a_broken_image_is_the_requests_error(predictor: Predictor, images: list[bytes]) -> None:
    status, body = answer(predictor, asked(tensors([b64(images[0]), b64(b"text")])))

    assert status == 415
    assert set(body) == {"error"}
    assert body["error"].startswith("unsupported_image_type: images[1]: image must be PNG, JPEG or WebP, got ")


def test_held_out_images_give_tensors_of_their_own(typical_dir: Path, images: list[bytes]) -> None:
    predictor = Predictor.open(typical_dir, threads=1)
    data = [b64(image) for image in images]
    _, plain = answer(predictor, asked(tensors(data)))
    _, body = answer(predictor, asked(tensors(data, parameters={"coverage": 0.8})))

    expected = typical_answers(np.stack([predictor.decode(image) for image in images]))
    outputs = {output["name"]: output for output in body["outputs"]}
    common = ["label", "posterior", "component", "component_name", "responsibilities", "log_density", "typicality"]
    assert [output["name"] for output in plain["outputs"]] == common
    assert list(outputs) == [*common, "possible"]
    p_values = held_out().typicality(expected["typicality_score"])
    assert outputs["typicality"]["datatype"] == "FP32"
    assert outputs["typicality"]["data"] == pytest.approx(p_values, abs=1 / 400)
    possible = held_out().possible(expected["posterior"], 0.8)
    assert (outputs["possible"]["datatype"], outputs["possible"]["shape"]) == ("BOOL", [8, 4])
    assert outputs["possible"]["data"] == possible.ravel().tolist()
    named = zip(outputs["label"]["data"], outputs["component"]["data"], strict=True)
    names = [COMPONENT_NAMES.get(label, {}).get(component, "") for label, component in named]
    assert (outputs["component_name"]["datatype"], outputs["component_name"]["data"]) == ("BYTES", names)


def test_names_of_components_are_empty_where_nobody_has_named_them(predictor: Predictor, images: list[bytes]) -> None:
    _, body = answer(predictor, asked(tensors([b64(images[0])], outputs=[{"name": "component_name"}])))

    assert body["outputs"] == [{"name": "component_name", "datatype": "BYTES", "shape": [1], "data": [""]}]


@pytest.mark.parametrize("name", ["typicality", "component_name", "log_density"])
def test_tensors_that_a_softmax_model_has_not(softmax_dir: Path, images: list[bytes], name: str) -> None:
    refused = answer(Predictor.open(softmax_dir, threads=1), asked(tensors([b64(images[0])], outputs=[{"name": name}])))

    assert refused == (400, {"error": f"bad_request: outputs must be tensors that this model has, got {name!r}"})


def test_a_model_without_held_out_images_takes_no_coverage(predictor: Predictor, images: list[bytes]) -> None:
    status, body = answer(predictor, asked(tensors([b64(images[0])], parameters={"coverage": 0.9})))

    assert status == 422
    message = "bad_parameter: coverage must be left out, as tiny-mda has no held-out images to tell by, got 0.9: export"
    assert body["error"].startswith(message)


def test_a_softmax_model_has_no_components(softmax_dir: Path, images: list[bytes]) -> None:
    predictor = Predictor.open(softmax_dir, threads=1)
    status, body = answer(predictor, asked(tensors([b64(images[0])])))

    assert (status, [output["name"] for output in body["outputs"]]) == (200, ["label", "posterior"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensors(["x"], other=1), "request must have no keys but id, inputs, "),
        ({"inputs": []}, "inputs must be a list of one tensor, images, got []"),
        (
            {"inputs": [tensors(["x"])["inputs"][0] | {"parameters": []}]},
            "parameters of the tensor must be an object, got []",
        ),
        ({"inputs": [{"name": "pixels", "datatype": "FP32"}]}, "the tensor must be images of datatype BYTES, got 'pi"),
        (tensors(["x"], [2]), "data must be a list of as many images as the shape [2] says, got 1"),
        (tensors("x", [1]), "data must be a list of as many images as the shape [1] says, got none"),
        (tensors(["x"], [True]), "shape must be a list of 1 to 4 whole numbers, got [True]"),
        (tensors(["x"], [-1, -1]), "shape must be a list of 1 to 4 whole numbers, got [-1, -1]"),
        (tensors(["x"], [1] * 5), "shape must be a list of 1 to 4 whole numbers, got [1, 1, 1, 1, 1]"),
        (tensors(["x"], parameters=[]), "parameters of the request must be an object, got []"),
        (
            tensors(["x"], parameters={"top_k": 1}),
            "parameters of the request must be none but binary_data_output, coverage, got 'top_k'",
        ),
        (
            {"inputs": [tensors(["x"])["inputs"][0] | {"parameters": {"shared_memory_region": "a"}}]},
            "parameters of the tensor must be none but binary_data_size, got 'shared_memory_region'",
        ),
        (
            {"inputs": [tensors(["x"])["inputs"][0] | {"parameters": {"binary_data_size": 0}}]},
            "the tensor must be in JSON or in binary, got both",
        ),
        (
            {"inputs": [tensors(["x"])["inputs"][0] | {"other": 1}]},
            "the tensor must have no keys but name, shape, datatype, data, parameters, got ['other']",
        ),
        (tensors(["x"], model_name=[]), "model_name must be text, got []"),
        (tensors(["x"], outputs={}), "outputs must be a list of objects, got {}"),
        (tensors(["x"], outputs=[7]), "outputs must be a list of objects, got [7]"),
        (tensors(["x"], outputs=[{"name": []}]), "outputs must name tensors of label, posterior, component, "),
        (
            tensors(["x"], outputs=[{"name": "label"}] * 2),
            "outputs must name tensors of label, posterior, component, component_name, responsibilities, log_density, "
            "typicality, possible, features, each once, got 'label'",
        ),
        (
            tensors(["x"], outputs=[{"name": "label", "parameters": {"classification": 3}}]),
            "parameters of the output must be none but binary_data, got 'classification'",
        ),
        (
            tensors(["x"], outputs=[{"name": "label", "parameters": {"binary_data": 1}}]),
            "binary_data must be bool, got 1",
        ),
        (
            tensors(["x"], outputs=[{"name": "label", "x": 1}]),
            "an output must have no keys but name, parameters, got ['x']",
        ),
        (tensors(["x"], id=7), "id must be text, got 7"),
        (tensors(["x"], parameters={"coverage": 1}), "coverage must be float, got 1"),
        (
            tensors(["x"], outputs=[{"name": "possible"}]),
            "outputs must name possible only where parameters of the request give a coverage, got none",
        ),
        (tensors(["x"], outputs=[{"name": "logits"}]), "outputs must name tensors of label, posterior, "),
        (tensors([""] * 257), "images must hold 1 to 256 images, got 257"),
        ({"inputs": [tensors([])["inputs"][0] | {"shape": [0]}]}, "images must hold 1 to 256 images, got 0"),
    ],
)
def test_what_breaks_the_protocol_is_a_400_in_its_own_form(body: Any, message: str) -> None:
    request = asked(body)
    assert isinstance(request.images, ServingError)
    status, answered = request.reply(request.images)

    assert status == 400
    assert answered["error"].startswith(f"bad_request: {message}")


def test_a_coverage_breaks_its_rule_in_the_protocols_own_form() -> None:
    request = asked(tensors(["x"], parameters={"coverage": 1.5}))

    assert isinstance(request.images, ServingError)
    message = "bad_parameter: coverage must be a number above 0 and below 1, got 1.5"
    assert request.reply(request.images) == (422, {"error": message})


@pytest.mark.parametrize(
    ("binary", "size", "message"),
    [
        (b"\1\0", 2, "each binary element must follow its length in 4 bytes, got a part of a length"),
        (b"\5\0\0\0abc", 7, "a binary element must be there whole, got 3 of 5 bytes"),
        (b"\1\0\0\0a", 4, "binary_data_size must be the bytes behind the JSON, 5, got 4"),
        (b"\1\0\0\0a", 5.0, "binary_data_size must be int, got 5.0"),
        (b"a", True, "binary_data_size must be int, got True"),
        (b"a", [], "binary_data_size must be int, got []"),
        (b"a", None, "binary_data_size must be int, got None"),
    ],
)
def test_broken_binary_tensors(binary: bytes, size: Any, message: str) -> None:
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    request = read(Message(text + binary, json_length=str(len(text))))

    assert isinstance(request.images, ServingError)
    assert str(request.images) == message


@pytest.mark.parametrize("length", ["x", "-1", "99999"])
def test_a_wrong_length_of_the_json(length: str) -> None:
    with pytest.raises(ServingError, match=r"^Inference-Header-Content-Length must be at most 2, got "):
        read(Message(b"{}", json_length=length))


def test_text_that_is_no_base64(images: list[bytes]) -> None:
    request = asked(tensors(["?", 7, b64(images[0])]))

    assert [type(image).__name__ for image in request.images] == ["ImageError", "ImageError", "bytes"]


def test_bytes_behind_the_json_that_belong_to_no_tensor(images: list[bytes]) -> None:
    text = json.dumps(tensors([b64(images[0])])).encode()
    request = read(Message(text + b"abc", json_length=str(len(text))))

    assert isinstance(request.images, ServingError)
    assert str(request.images) == "binary_data_size must be the bytes behind the JSON, 3, got none"


def test_wishes_for_binary_answers_and_empty_parameters_do_no_harm(predictor: Predictor, images: list[bytes]) -> None:
    plain = tensors([b64(images[0])], outputs=[{"name": "label"}])
    wishes = {"parameters": {"binary_data_output": True}, "model_name": "tiny-mda"}
    wished = plain | wishes | {"outputs": [{"name": "label", "parameters": {"binary_data": True}}]}

    expected = answer(predictor, asked(plain))
    assert expected[0] == 200
    assert answer(predictor, asked(plain | {"parameters": {}})) == answer(predictor, asked(wished)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
PLACES: list[tuple[str | int, ...]] = [
    (),
    *((key,) for key in ("id", "model_name", "parameters", "inputs", "outputs", "other")),
    ("parameters", "binary_data_output"),
    ("parameters", "coverage"),
    ("inputs", 0),
    *(("inputs", 0, key) for key in ("name", "shape", "datatype", "data", "parameters", "other")),
    *(("inputs", 0, key, 0) for key in ("shape", "data")),
    ("inputs", 0, "parameters", "binary_data_size"),
    ("outputs", 0),
    *(("outputs", 0, key) for key in ("name", "parameters", "other")),
    ("outputs", 0, "parameters", "binary_data"),
]


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3), st.binary(max_size=9))
def test_whatever_stands_anywhere_is_answered_or_refused(
    predictor: Predictor, images: list[bytes], changes: list[tuple[tuple[str | int, ...], Any]], binary: bytes
) -> None:
    body: Any = tensors([b64(images[0])], parameters={}, outputs=[{"name": "label", "parameters": {}}], id="7")
    body["inputs"][0]["parameters"] = {}
    for place, value in changes:
        body = changed(body, place, value)
    text = orjson.dumps(body)
    message = Message(text + binary, content_type="application/json", json_length=str(len(text)) if binary else None)

    try:
        request = read(message)
    except BadRequest:
        return  # of another form
    status, answered = answer(predictor, request)
    assert status in (200, 400, 413, 415, 422)
    assert orjson.dumps(answered)


def changed(tree: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """The tree with another value at a place, if the place is still there."""
    if not place:
        return value
    first, *rest = place
    if isinstance(tree, dict) and isinstance(first, str):
        return tree | {first: changed(tree.get(first), tuple(rest), value)}
    if isinstance(tree, list) and tree and first == 0:
        return [changed(tree[0], tuple(rest), value), *tree[1:]]
    return tree
