"""A request as Triton hands it over → images and options; what its images got → tensors.

    images      one encoded image each; or its base64, for JSON, which holds text alone
    parameters  those of `parameters.py`: numbers as numbers or text, `accept`, `priors` and `return` as JSON text
    outputs     the tensors of `tensors.py`; `error`, JSON {"code": ..., "message": ...}, empty where all is well; and
                `answer`, the JSON that `/predictions` gives for the image

Who names no outputs gets all but `features` and `answer`, and `possible` only with a coverage. An image that cannot be
answered has its error in `error` and `answer`, and blanks elsewhere; for who names outputs but neither of these, the
first error is the request's, so that none is overlooked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import orjson

from serving.bundle import Manifest
from serving.errors import BadParameter, BadRequest, ServingError, shown
from serving.limits import Limits
from serving.parameters import Options, read_options
from serving.request import Request, check_count, check_size, from_base64
from serving.respond import Form, Result, StatusAndBody, error_body
from serving.tensors import check_possible, parts, returned, tensors_of

ERROR, ANSWER = "error", "answer"
TEXTS = (ERROR, ANSWER)  # of BYTES, one an image, beside the tensors
BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/", b"UklGR")  # of a PNG, a JPEG and a WebP; no image starts with these itself


@dataclass(frozen=True)
class TensorMessage:
    """A request of one model.

    Attributes:
        images: the elements of its tensor.
        wanted: the outputs that it names; None if it names none.
        parameters: of the request.
        manifest: of the model's bundle.
        request_id: what it is called in the log.
    """

    images: Sequence[bytes]
    wanted: frozenset[str] | None
    parameters: Mapping[str, Any]
    manifest: Manifest
    request_id: str = ""

    @property
    def size(self) -> int:
        """Bytes of its images."""
        return sum(map(len, self.images))

    def read(self, limits: Limits) -> Request:
        """The images and options that are in it.

        Raises:
            BadRequest: if it has too many images, or wants tensors that the model does not have.
            BadParameter: if a parameter breaks its rule.
            ImageTooLarge: if it has more bytes than allowed.
        """
        check_size(self.size, limits)
        check_count("images", self.images, limits)
        options = read_options({name: _value(name, value) for name, value in self.parameters.items()})
        names = self._names(options)
        form = Form(partial(respond, names=names, manifest=self.manifest))
        return Request([_image(element) for element in self.images], _needed(options, names), form)

    def _names(self, options: Options) -> tuple[str, ...]:
        """The outputs that the reply has, in order."""
        own = tensors_of(self.manifest)
        if self.wanted is None:
            without = {"features"} if self.manifest.component_names else {"features", "component_name"}
            left_out = without if options.coverage is not None else without | {"possible"}
            return *(name for name in own if name not in left_out), ERROR
        if unknown := sorted(self.wanted - own.keys() - set(TEXTS)):
            raise BadRequest(f"outputs must be tensors that this model has, got {unknown[0]!r}")
        check_possible(self.wanted, options.coverage)
        return tuple(name for name in (*own, *TEXTS) if name in self.wanted)


def respond(results: Sequence[Result], names: Sequence[str], manifest: Manifest) -> StatusAndBody:
    """The HTTP status and the outputs for what the images got, each as a list of its images' parts."""
    for position, result in enumerate(results):
        if isinstance(result, ServingError) and not set(TEXTS) & set(names):
            return result.status, {"error": {"code": result.code, "message": f"images[{position}]: {result}"}}
    return 200, {name: _output(name, results, manifest) for name in names}


def _output(name: str, results: Sequence[Result], manifest: Manifest) -> list[Any]:
    bodies = [error_body(result) if isinstance(result, ServingError) else result for result in results]
    if name == ANSWER:
        return [orjson.dumps(body).decode() for body in bodies]
    if name == ERROR:
        return [orjson.dumps(body["error"]).decode() if "error" in body else "" for body in bodies]
    answers = iter(parts(name, [result for result in results if not isinstance(result, ServingError)]))
    tensor = tensors_of(manifest)[name]
    blank = np.full(tensor.sizes(manifest.head), tensor.blank, dtype=object).tolist()
    return [blank if isinstance(result, ServingError) else next(answers) for result in results]


def _needed(options: Options, names: Sequence[str]) -> Options:
    """What the answers must hold, so that the outputs can be made of them."""
    if ANSWER in names:
        return replace(options, returns=options.returns | returned(names))
    return replace(options, top_k=1, returns=returned(names))


def _value(name: str, value: Any) -> Any:
    """A parameter; the protocol has no lists and objects, so these are JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as exc:
        raise BadParameter(f"{name} must be a number, or JSON as text, got {shown(value)}") from exc


def _image(element: bytes) -> bytes | ServingError:
    """An element of the tensor."""
    return from_base64("image", element.decode(errors="replace")) if element.startswith(BASE64_STARTS) else element
