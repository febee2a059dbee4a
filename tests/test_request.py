import base64
from typing import Any

import orjson
import pytest

from serving.errors import BadParameter, BadRequest, ImageError, ImageTooLarge
from serving.limits import Limits
from serving.parameters import PARAMETERS, Accept, Options
from serving.request import FORMS, Message, Request, read
from serving.respond import ALONE, EACH

NAMES = "probabilities, components, features, examples, timings"

IMAGE = b"\x89PNG..."
B64 = base64.b64encode(IMAGE).decode()


def read_json(body: Any, **limits: int) -> Any:
    return read(Message(orjson.dumps(body), content_type="application/json"), Limits(**limits))


def read_form(**parts: bytes) -> Request:
    return read(Message(parts=parts))


def test_a_raw_body_is_one_image() -> None:
    request = read(Message(bytearray(IMAGE)))

    assert (request.images, request.options, request.form) == ([IMAGE], Options(), ALONE)


def test_a_form_may_carry_parameters() -> None:
    request = read_form(data=IMAGE, parameters=b'{"top_k": 5, "return": ["features"]}')

    assert (request.images, request.form) == ([IMAGE], ALONE)
    assert request.options == Options(5, frozenset({"features"}))


def test_parameters_that_held_out_images_and_priors_are_for() -> None:
    parameters = {
        "coverage": 0.9,
        "atypical_below": 0,
        "accept": {"probability": 1, "typicality": 0.05},
        "priors": {"cat": 0.25, "dog": 0.75},
    }

    options = read_json({"instances": [{"b64": B64}], "parameters": parameters}).options
    assert options == Options(
        coverage=0.9, atypical_below=0.0, accept=Accept(1.0, 0.05), priors=(("cat", 0.25), ("dog", 0.75))
    )


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", ""])
def test_json_is_known_by_its_type_or_its_brace(content_type: str) -> None:
    body = b' {"instances": [{"b64": "' + B64.encode() + b'"}], "parameters": {"top_k": 1}}'

    request = read(Message(body, content_type=content_type))
    assert (request.images, request.options.top_k, request.form) == ([IMAGE], 1, EACH)


def test_a_form_may_hold_json_but_no_parameters_beside_it() -> None:
    json = orjson.dumps({"instances": [{"b64": B64}]})

    assert read_form(data=json).images == [IMAGE]
    with pytest.raises(BadRequest, match=r"^parameters of JSON must be a key of it, got a form field$"):
        read_form(data=json, parameters=b'{"top_k": 1}')


def test_an_empty_body_is_left_to_the_decoder() -> None:
    assert read(Message(b"")).images == [b""]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (5, 'instance must be an object {"b64": "..."}, got 5'),
        ({}, 'instance must be an object {"b64": "..."}, got {}'),
        ({"b64": 1}, 'instance must be an object {"b64": "..."}, got {\'b64\': 1}'),
        ({"b64": B64, "x": 1}, None),
        ({"b64": "?"}, "b64 must be base64 without line breaks, got '?' (Only base64 data is allowed)"),
        ({"b64": "é"}, None),
        ({"b64": "QUJ"}, None),
        ({"b64": "QUJD\nQUJD"}, None),
    ],
)
def test_a_wrong_instance_is_an_error_in_its_own_place(instance: Any, message: str | None) -> None:
    first, wrong, last = read_json({"instances": [{"b64": B64}, instance, {"b64": B64}]}).images

    assert first == last == IMAGE
    assert isinstance(wrong, ImageError)
    assert message is None or str(wrong) == message


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "[]"),
        ({"body": IMAGE, "parameters": b""}, "['body', 'parameters']"),
        ({"image": IMAGE}, "['image']"),
        ({"data": IMAGE, "extra": b""}, "['data', 'extra']"),
    ],
)
def test_other_forms_are_refused(fields: dict[str, bytes], shown: str) -> None:
    with pytest.raises(BadRequest) as info:
        read(Message(parts=fields))

    assert str(info.value) == f"request must be {FORMS}, got form fields {shown}; with curl, send a file by -T"
    assert (info.value.status, info.value.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "request body must be JSON, got b'{' ("),
        (b"\xff{", "request body must be JSON, got b'\\xff{' ("),
        (b"", "request body must be JSON, got b'' ("),
        (b"[" * 5000, "request body must be JSON, got b'[[[["),
        (b"[1]", 'request body must be an object with "instances", got [1]'),
        (b'{"a": 1}', "request body must be an object with \"instances\", got {'a': 1}"),
        (b'{"instances": [], "x": 1}', "request body must have no keys but instances and parameters, got ['x']"),
        (b'{"instances": {}}', "instances must be a list, got {}"),
        (b'{"instances": []}', "instances must hold 1 to 256 images, got 0"),
        (b'{"instances": [' + b"1," * 256 + b"1]}", "instances must hold 1 to 256 images, got 257"),
    ],
)
def test_json_of_the_wrong_shape(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as info:
        read(Message(body, content_type="application/json"))

    assert str(info.value).startswith(message)
    assert info.value.status == 400


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "parameters must be an object, got []"),
        ({"topk": 1}, f"parameter must be one of {', '.join(PARAMETERS)}, got 'topk'"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"top_k": True}, "top_k must be an integer of at least 1, got True"),
        ({"top_k": 1.0}, "top_k must be an integer of at least 1, got 1.0"),
        ({"top_k": "x" * 99}, f"top_k must be an integer of at least 1, got '{'x' * 59}..."),
        (
            {"return": "features"},
            f"return must be a list of {NAMES}, got 'features'",
        ),
        (
            {"return": ["logits"]},
            f"return must be a list of {NAMES}, got ['logits']",
        ),
        ({"return": [[]]}, f"return must be a list of {NAMES}, got [[]]"),
        ({"coverage": 1}, "coverage must be a number above 0 and below 1, got 1"),
        ({"coverage": 0.0}, "coverage must be a number above 0 and below 1, got 0.0"),
        ({"coverage": True}, "coverage must be a number above 0 and below 1, got True"),
        ({"coverage": None}, "coverage must be a number above 0 and below 1, got None"),
        ({"coverage": "90 %"}, "coverage must be a number above 0 and below 1, got '90 %'"),
        ({"atypical_below": 1}, "atypical_below must be a number of at least 0 and below 1, got 1"),
        ({"atypical_below": -0.1}, "atypical_below must be a number of at least 0 and below 1, got -0.1"),
        ({"accept": 0.9}, "accept must be an object of probability and typicality, or one of them, got 0.9"),
        ({"accept": {}}, "accept must be an object of probability and typicality, or one of them, got {}"),
        ({"accept": {"x": 1}}, "accept must be an object of probability and typicality, or one of them, got {'x': 1}"),
        ({"accept": {"probability": 1.5}}, "accept.probability must be a number from 0 to 1, got 1.5"),
        ({"accept": {"typicality": "x"}}, "accept.typicality must be a number from 0 to 1, got 'x'"),
        ({"priors": [0.5, 0.5]}, "priors must be an object of each label's share, got [0.5, 0.5]"),
        ({"priors": {}}, "priors must sum to 1 within 1e-06, got 0"),
        ({"priors": {"cat": 0.7, "dog": 0.2}}, "priors must sum to 1 within 1e-06, got 0.9"),
        ({"priors": {"cat": 1.0, "dog": 0}}, "priors of 'dog' must be a number above 0 and at most 1, got 0"),
        ({"priors": {"cat": 0.5, "dog": "half"}}, "priors of 'dog' must be a number above 0 and at most 1, got 'half'"),
    ],
)
def test_a_wrong_parameter(parameters: Any, message: str) -> None:
    with pytest.raises(BadParameter) as info:
        read_json({"instances": [{"b64": B64}], "parameters": parameters})
    with pytest.raises(BadParameter) as in_form:
        read_form(data=IMAGE, parameters=orjson.dumps(parameters))

    assert str(info.value) == str(in_form.value) == message
    assert (info.value.status, info.value.code) == (422, "bad_parameter")


def test_parameters_of_a_form_that_are_no_json() -> None:
    with pytest.raises(BadParameter, match=r"^parameters must be JSON, got b'top_k=1' \("):
        read_form(data=IMAGE, parameters=b"top_k=1")


def test_the_number_of_instances_is_limited_as_told() -> None:
    with pytest.raises(BadRequest, match=r"^instances must hold 1 to 2 images, got 3$"):
        read_json({"instances": [1, 2, 3]}, max_instances=2)


@pytest.mark.parametrize("message", [Message(bytes(9)), Message(parts={"data": bytes(5), "parameters": bytes(4)})])
def test_the_bytes_of_a_request_are_limited_as_told(message: Message) -> None:
    with pytest.raises(ImageTooLarge, match=r"^request must have at most 8 bytes, got 9$"):
        read(message, Limits(max_request_bytes=8))


@pytest.mark.parametrize("body", [b'{"instances": [' + b"[]," * 10**6 + b"1]}", b"[" + b"1," * 10**6 + b"1]"])
def test_a_message_shows_little_of_what_it_is_about(body: bytes) -> None:
    with pytest.raises(BadRequest) as info:
        read(Message(body, content_type="application/json"))

    assert len(str(info.value)) < 200
