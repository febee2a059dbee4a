"""Reading: what arrived by HTTP or gRPC → the images and the options of one request.

The forms are:

    a raw body             the bytes of one image
    multipart/form-data    `data`, one image, and optionally `parameters`, JSON text
    application/json       {"instances": [{"b64": "..."}], "parameters": {"top_k": 3, "return": ["features"]}}
    Open Inference         {"inputs": [...]}; see `open_inference.py`
    gRPC                   the `input` of Predictions: `data`, and optionally `parameters`, as in a form

JSON is known by its content type, or, where there is none, by its first character: no image starts with a brace.
"""

import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving.decode import DEFAULT_LIMITS, Limits
from serving.errors import BadParameter, BadRequest, ImageError, ServingError
from serving.open_inference import read_tensors, refuse
from serving.respond import DEFAULT_OPTIONS, RETURNABLE, Answer, Options, Result, respond_alone, respond_each

FORMS = 'an image as body, a form field "data", or JSON {"instances": [{"b64": "..."}]}'
PARAMETERS = ("top_k", "return")
SHOWN_CHARACTERS = 60

Reply = Callable[[Sequence[Result]], tuple[int, Answer]]


@dataclass(frozen=True)
class Request:
    """One request, read.

    Attributes:
        images: the bytes of each image, or the error that answers it.
        options: the client's choices.
        reply: makes what its images got into its HTTP status and body.
    """

    images: Sequence[bytes | ServingError]
    options: Options = DEFAULT_OPTIONS
    reply: Reply = respond_alone


def read(
    fields: Mapping[str, Any], content_type: str = "", limits: Limits = DEFAULT_LIMITS, json_length: str | None = None
) -> Request:
    """Read one request.

    Args:
        fields: the raw body as `body`, or the parts of a form by their names; bytes, or text.
        content_type: of the body; may be empty.
        limits: how many instances one request may hold.
        json_length: the header Inference-Header-Content-Length: how many bytes of the body are JSON.

    Raises:
        BadRequest: if the request as a whole cannot be read.
        BadParameter: if one of its parameters breaks its rule.
    """
    name = "body" if "body" in fields else "data"
    if name not in fields or not set(fields) <= {name, "parameters"}:
        raise BadRequest(
            f"request must be {FORMS}, got form fields {_shown(sorted(fields))}; with curl, send a file by -T"
        )
    payload = _bytes(fields[name])
    if json_length is not None and name == "body":
        return _read_binary_tensors(payload, json_length, limits)
    if _is_json(payload, content_type if name == "body" else ""):
        return _read_instances(payload, limits)
    return Request([payload], _read_options(_loads("parameters", fields.get("parameters", b"{}"), BadParameter)))


def _is_json(payload: bytes, content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or payload[:64].lstrip().startswith(b"{")


def _read_binary_tensors(payload: bytes, json_length: str, limits: Limits) -> Request:
    if not json_length.isdecimal() or int(json_length) > len(payload):
        raise BadRequest(f"Inference-Header-Content-Length must be at most {len(payload)}, got {_shown(json_length)}")
    length = int(json_length)
    body = _loads("request body", payload[:length], BadRequest)
    if not isinstance(body, dict) or "inputs" not in body:
        raise BadRequest(f'request body must be an object with "inputs", got {_shown(body)}')
    return _read_tensors(body, payload[length:], limits)


def _read_tensors(body: dict[str, Any], binary: bytes, limits: Limits) -> Request:
    try:
        tensors = read_tensors(body, binary)
        _check_count("images", tensors.images, limits)
    except BadRequest as error:
        return Request([error], reply=refuse)
    images = [image if isinstance(image, bytes) else _decoded("image", image) for image in tensors.images]
    return Request(images, tensors.options, tensors.reply)


def _check_count(what: str, images: Sequence[Any], limits: Limits) -> None:
    if not 1 <= len(images) <= limits.max_instances:
        raise BadRequest(f"{what} must hold 1 to {limits.max_instances} images, got {len(images)}")


def _read_instances(payload: bytes, limits: Limits) -> Request:
    body = _loads("request body", payload, BadRequest)
    if isinstance(body, dict) and "inputs" in body:
        return _read_tensors(body, b"", limits)
    if not isinstance(body, dict) or "instances" not in body:
        raise BadRequest(f'request body must be an object with "instances", got {_shown(body)}')
    unknown = sorted(set(body) - {"instances", "parameters"})
    if unknown:
        raise BadRequest(f"request body must have no keys but instances and parameters, got {_shown(unknown)}")
    instances = body["instances"]
    if not isinstance(instances, list):
        raise BadRequest(f"instances must be a list, got {_shown(instances)}")
    _check_count("instances", instances, limits)
    options = _read_options(body.get("parameters", {}))
    return Request([_read_instance(item) for item in instances], options, respond_each)


def _read_instance(item: Any) -> bytes | ServingError:
    if not isinstance(item, dict) or set(item) != {"b64"} or not isinstance(item["b64"], str):
        return ImageError(f'instance must be an object {{"b64": "..."}}, got {_shown(item)}')
    return _decoded("b64", item["b64"])


def _decoded(what: str, text: Any) -> bytes | ServingError:
    if not isinstance(text, str):
        return ImageError(f"{what} must be text in base64, got {_shown(text)}")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as exc:
        return ImageError(f"{what} must be base64 without line breaks, got {_shown(text)} ({exc})")


def _read_options(parameters: Any) -> Options:
    if not isinstance(parameters, dict):
        raise BadParameter(f"parameters must be an object, got {_shown(parameters)}")
    for name in parameters:
        if name not in PARAMETERS:
            raise BadParameter(f"parameter must be one of {', '.join(PARAMETERS)}, got {_shown(name)}")
    top_k = parameters.get("top_k", DEFAULT_OPTIONS.top_k)
    if type(top_k) is not int or top_k < 1:
        raise BadParameter(f"top_k must be an integer of at least 1, got {_shown(top_k)}")
    returns = parameters.get("return", sorted(DEFAULT_OPTIONS.returns))
    if not isinstance(returns, list) or not all(item in RETURNABLE for item in returns):
        raise BadParameter(f"return must be a list of {', '.join(RETURNABLE)}, got {_shown(returns)}")
    return Options(top_k, frozenset(returns))


def _loads(what: str, text: Any, error: type[BadRequest]) -> Any:
    try:
        return orjson.loads(_bytes(text))
    except orjson.JSONDecodeError as exc:
        raise error(f"{what} must be JSON, got {_shown(_bytes(text))} ({exc})") from exc


def _bytes(value: Any) -> bytes:
    """The bytes of a field, which a server may have decoded to text or JSON already."""
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray) else orjson.dumps(value)


def _shown(value: Any) -> str:
    """`value` for a message, cut to a readable length."""
    text = repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
