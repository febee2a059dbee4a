"""Everything that serving refuses, as one tree. Each error carries the HTTP status and the code that a client sees.

ServingError                 500  internal_error
├── BundleError              500  bad_bundle
├── DeviceUnavailable        500  device_unavailable
├── ServerError              500  server_error           the launcher: cannot start, stop or reach TorchServe
├── Draining                 503  draining               the server is about to stop
├── Overloaded               503  overloaded             its batch has no time for the request
├── AnswerTooLarge           413  answer_too_large       what the request asks for is too much to send
├── BadRequest               400  bad_request            the request as a whole cannot be read
│   └── BadParameter         422  bad_parameter
└── ImageError               400  undecodable_image      one image; its neighbours are answered
    ├── ImageTooLarge        413  image_too_large
    └── UnsupportedImage     415  unsupported_image_type

Offline scoring adds its own, which no client sees: SourceError, PlaceError, OutputError and EngineError end a job, and
UnreadableFile is an ImageError that becomes a row.
"""

import reprlib

SHOWN_CHARACTERS = 60

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = SHOWN_CHARACTERS


class ServingError(Exception):
    """Base of all that serving raises on purpose.

    Attributes:
        status: HTTP status of a request that ends with this error.
        code: stable name of the error for programs; the message is for people.
    """

    status: int = 500
    code: str = "internal_error"


class BundleError(ServingError):
    """A bundle is missing, incomplete, of another schema, or not what its digests say."""

    code = "bad_bundle"


class DeviceUnavailable(ServingError):
    """A device was asked for by name and is not there."""

    code = "device_unavailable"


class ServerError(ServingError):
    """TorchServe could not be started, stopped or reached."""

    code = "server_error"


class Draining(ServingError):
    """The server is about to stop and takes no more requests."""

    status = 503
    code = "draining"

    def __init__(self) -> None:
        super().__init__("the server is about to stop: send the request to another one, or again in a while")


class Overloaded(ServingError):
    """Others have sent so much that the request would have to wait too long, and others behind it."""

    status = 503
    code = "overloaded"

    def __init__(self) -> None:
        super().__init__("the server has too much to do for this request: send it again in a moment")


class AnswerTooLarge(ServingError):
    """The answers of one request could have more bytes than the limits allow."""

    status = 413
    code = "answer_too_large"


class BadRequest(ServingError):
    """The request as a whole cannot be read."""

    status = 400
    code = "bad_request"


class BadParameter(BadRequest):
    """The request can be read, but one of its parameters breaks its rule."""

    status = 422
    code = "bad_parameter"


class ImageError(ServingError):
    """One image cannot be answered: its bytes are no image, or a broken one."""

    status = 400
    code = "undecodable_image"


class ImageTooLarge(ImageError):
    """An image, or those of one request together, have more bytes or pixels, or take longer, than the limits allow."""

    status = 413
    code = "image_too_large"


class UnsupportedImage(ImageError):
    """The bytes are not of an image type that is served."""

    status = 415
    code = "unsupported_image_type"


def shown(value: object) -> str:
    """A value for a message, cut to a readable length, at no cost that grows with it."""
    text = repr(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str | bytes) else _REPR.repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
