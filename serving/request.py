"""Reading: what arrived by any transport → the images and the options of one request.

The forms are:

    a raw body             the bytes of one image
    multipart/form-data    `data`, one image, and optionally `parameters`, JSON text
    application/json       {"instances": [{"b64": "..."}], "parameters": {"top_k": 3, "return": ["features"]}}
    Open Inference         {"inputs": [...]}; see `open_inference.py`
    gRPC                   the `input` of Predictions: `data`, and optionally `parameters`, as in a form

JSON is known by its content type, or, where there is none, by its first character: no image starts with a brace.
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from serving.errors import BadParameter, BadRequest, ImageError, ImageTooLarge, ServingError, shown
from serving.limits import DEFAULT_LIMITS, Limits
from serving.open_inference import read_tensors, refuse_tensors
from serving.parameters import DEFAULT_OPTIONS, Options, read_options
from serving.respond import ALONE, EACH, Form, Result, StatusAndBody, respond_each

FORMS = 'an image as body, a form field "data", or JSON {"instances": [{"b64": "..."}]}'
VALUE_STARTS = (b",", b"[", b"{")  # base64 holds none of them
MAX_VALUES = 100_000

Buffer = bytes | bytearray


@dataclass(frozen=True)
class Message:
    """A request as it arrived, whatever the transport.

    Attributes:
        body: all of it; None if it came in parts.
        parts: those of a form, by their names.
        content_type: of the body; may be empty.
        json_length: what the header Inference-Header-Content-Length says: how many bytes of the body are JSON.
        request_id: what it is called in the log.
    """

    body: Buffer | None = None
    parts: Mapping[str, Buffer] = field(default_factory=dict)
    content_type: str = ""
    json_length: str | None = None
    request_id: str = ""

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(map(len, self.parts.values())) if self.body is None else len(self.body)

    def read(self, limits: Limits) -> "Request":
        """The images and options that are in it, as `read` says."""
        return read(self, limits)


class Unread(Protocol):
    """What arrives by any transport: a `Message`, or what a transport that has taken a request apart makes of it."""

    @property
    def size(self) -> int:
        """Bytes of all of it."""

    @property
    def request_id(self) -> str:
        """What it is called in the log."""

    def read(self, limits: Limits) -> "Request":
        """The images and options that are in it.

        Raises:
            ServingError: if the request as a whole cannot be answered.
        """


@dataclass(frozen=True)
class Request:
    """One request, read.

    Attributes:
        images: the bytes of each image, or the error that answers it; or the error that answers the whole request.
        options: the client's choices.
        form: of its reply.
    """

    images: Sequence[bytes | ServingError] | ServingError
    options: Options = DEFAULT_OPTIONS
    form: Form = ALONE

    def reply(self, outcome: Sequence[Result] | ServingError) -> StatusAndBody:
        """The HTTP status and body for what its images got, or for the error of the whole."""
        return self.form.refuse(outcome) if isinstance(outcome, ServingError) else self.form.respond(outcome)


def read(message: Message, limits: Limits = DEFAULT_LIMITS) -> Request:
    """Read one request.

    Args:
        message: the request as it arrived.
        limits: how many bytes and instances one request may hold.

    Raises:
        BadRequest: if the request as a whole cannot be read.
        BadParameter: if one of its parameters breaks its rule.
        ImageTooLarge: if it has more bytes than allowed.
    """
    check_size(message.size, limits)
    if message.body is None:
        return _read_form(message.parts, limits)
    payload = bytes(message.body)
    if message.json_length is not None:
        return _read_binary_tensors(payload, message.json_length, limits)
    if _is_json(payload, message.content_type):
        return _read_json(payload, limits)
    return Request([payload])


def check_size(size: int, limits: Limits) -> None:
    """Refuse a request of too many bytes.

    Raises:
        ImageTooLarge: which says how many it may have.
    """
    if size > limits.max_request_bytes:
        raise ImageTooLarge(f"request must have at most {limits.max_request_bytes} bytes, got {size}")


def check_count(what: str, images: Sequence[Any], limits: Limits) -> None:
    """Refuse a request without images, or with too many.

    Raises:
        BadRequest: which says how many it may have.
    """
    if not 1 <= len(images) <= limits.max_instances:
        raise BadRequest(f"{what} must hold 1 to {limits.max_instances} images, got {len(images)}")


def from_base64(what: str, text: Any) -> bytes | ServingError:
    """What a client has written as base64, or the error that stands in its place; `what` leads the message."""
    if not isinstance(text, str):
        return ImageError(f"{what} must be text in base64, got {shown(text)}")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as exc:
        return ImageError(f"{what} must be base64 without line breaks, got {shown(text)} ({exc})")


def _read_form(parts: Mapping[str, Buffer], limits: Limits) -> Request:
    if "data" not in parts or not set(parts) <= {"data", "parameters"}:
        raise BadRequest(
            f"request must be {FORMS}, got form fields {shown(sorted(parts))}; with curl, send a file by -T"
        )
    payload, parameters = bytes(parts["data"]), parts.get("parameters")
    if not _is_json(payload):
        return Request([payload], read_options(_loads("parameters", bytes(parameters or b"{}"), BadParameter)))
    if parameters is not None:
        raise BadRequest("parameters of JSON must be a key of it, got a form field")
    return _read_json(payload, limits)


def _is_json(payload: bytes, content_type: str = "") -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or payload[:64].lstrip().startswith(b"{")


def _read_binary_tensors(payload: bytes, json_length: str, limits: Limits) -> Request:
    if not json_length.isdecimal() or int(json_length) > len(payload):
        raise BadRequest(f"Inference-Header-Content-Length must be at most {len(payload)}, got {shown(json_length)}")
    length = int(json_length)
    body = _loads("request body", payload[:length], BadRequest)
    if not isinstance(body, dict) or "inputs" not in body:
        raise BadRequest(f'request body must be an object with "inputs", got {shown(body)}')
    return _read_tensors(body, payload[length:], limits)


def _read_tensors(body: dict[str, Any], binary: bytes, limits: Limits) -> Request:
    try:
        tensors = read_tensors(body, binary)
        check_count("images", tensors.images, limits)
    except BadRequest as error:
        return Request(error, form=Form(respond_each, refuse_tensors))
    images = [image if isinstance(image, bytes) else from_base64("image", image) for image in tensors.images]
    return Request(images, tensors.options, Form(tensors.respond, refuse_tensors))


def _read_json(payload: bytes, limits: Limits) -> Request:
    body = _loads("request body", payload, BadRequest)
    if isinstance(body, dict) and "inputs" in body:
        return _read_tensors(body, b"", limits)
    if not isinstance(body, dict) or "instances" not in body:
        raise BadRequest(f'request body must be an object with "instances", got {shown(body)}')
    if unknown := [key for key in body if key not in ("instances", "parameters")]:
        raise BadRequest(f"request body must have no keys but instances and parameters, got {shown(unknown)}")
    instances = body["instances"]
    if not isinstance(instances, list):
        raise BadRequest(f"instances must be a list, got {shown(instances)}")
    check_count("instances", instances, limits)
    options = read_options(body.get("parameters", {}))
    return Request([_read_instance(item) for item in instances], options, EACH)


def _read_instance(item: Any) -> bytes | ServingError:
    if not isinstance(item, dict) or set(item) != {"b64"} or not isinstance(item["b64"], str):
        return ImageError(f'instance must be an object {{"b64": "..."}}, got {shown(item)}')
    return from_base64("b64", item["b64"])


def _loads(what: str, text: bytes, error: type[BadRequest]) -> Any:
    """JSON of not too many values: each may take as long to read as hundreds of bytes of text."""
    if sum(map(text.count, VALUE_STARTS)) > MAX_VALUES:
        raise error(f"{what} must be JSON of at most {MAX_VALUES} values, got more")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise error(f"{what} must be JSON, got {shown(text)} ({exc})") from exc
