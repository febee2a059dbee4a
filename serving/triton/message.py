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
from functools import lru_cache, partial
from typing import Any

import numpy as np
import orjson

from serving.bundle import Manifest
from serving.errors import BadParameter, BadRequest, ServingError, shown
from serving.limits import Limits
from serving.parameters import Options, read_options
from serving.request import Request, check_count, check_size, from_base64
from serving.respond import Answer, Form, Result, StatusAndBody, error_body
from serving.tensors import check_possible, parts, returned, tensors_of

ERROR, ANSWER = "error", "answer"
TEXTS = (ERROR, ANSWER)  # of BYTES, one an image, beside the tensors
KEPT = 16  # forms of replies, by the outputs in them
BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/", b"UklGR")  # of a PNG, a JPEG and a WebP; no image starts with these itself


class Outputs:
    """The outputs that a model's replies can have.

    Args:
        manifest: of the model's bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._tensors = tensors_of(manifest)
        self._head = manifest.head
        unasked = {"features"} if manifest.component_names else {"features", "component_name"}
        self._plain = tuple(name for name in self._tensors if name not in unasked)
        self.form = lru_cache(KEPT)(lambda names: Form(partial(self._respond, names), is_kept=True))

    def names(self, wanted: frozenset[str] | None, coverage: float | None) -> tuple[str, ...]:
        """The outputs of a reply, in order.

        Args:
            wanted: those that the request names; None if it names none.
            coverage: that it asks for.

        Raises:
            BadRequest: if the model does not have one of them, or it has nothing to be made of.
        """
        if wanted is None:
            return *(name for name in self._plain if name != "possible" or coverage is not None), ERROR
        if unknown := sorted(wanted - self._tensors.keys() - set(TEXTS)):
            raise BadRequest(f"outputs must be tensors that this model has, got {unknown[0]!r}")
        check_possible(wanted, coverage)
        return tuple(name for name in (*self._tensors, *TEXTS) if name in wanted)

    def _respond(self, names: Sequence[str], results: Sequence[Result]) -> StatusAndBody:
        """The HTTP status, and each output as a list of its images' parts."""
        errors = {n: result for n, result in enumerate(results) if isinstance(result, ServingError)}
        if errors and not set(TEXTS) & set(names):
            first, error = next(iter(errors.items()))
            return error.status, {"error": {"code": error.code, "message": f"images[{first}]: {error}"}}
        answers = [result for result in results if not isinstance(result, ServingError)]
        body: Answer = {}
        for name in names:
            body[name] = self._parts(name, answers)
            for n, error in errors.items():  # in order, so that each finds those before it in their places
                body[name].insert(n, self._of_error(name, error))
        return 200, body

    def _parts(self, name: str, answers: Sequence[Answer]) -> list[Any]:
        if name == ERROR:
            return [""] * len(answers)
        return [orjson.dumps(answer).decode() for answer in answers] if name == ANSWER else parts(name, answers)

    def _of_error(self, name: str, error: ServingError) -> Any:
        if name in TEXTS:
            body = error_body(error)
            return orjson.dumps(body if name == ANSWER else body["error"]).decode()
        tensor = self._tensors[name]
        return np.full(tensor.sizes(self._head), tensor.blank, dtype=object).tolist()


@dataclass(frozen=True)
class TensorMessage:
    """A request of one model.

    Attributes:
        images: the elements of its tensor.
        wanted: the outputs that it names; None if it names none.
        parameters: of the request.
        outputs: of the model.
        request_id: what it is called in the log.
    """

    images: Sequence[bytes]
    wanted: frozenset[str] | None
    parameters: Mapping[str, Any]
    outputs: Outputs
    request_id: str = ""

    @property
    def size(self) -> int:
        """Bytes of its images."""
        return sum(map(len, self.images))

    def read(self, limits: Limits) -> Request:
        """The images and options that are in it.

        Raises:
            BadRequest: if it has too many images, or wants outputs that the model does not have.
            BadParameter: if a parameter breaks its rule.
            ImageTooLarge: if it has more bytes than allowed.
        """
        check_size(self.size, limits)
        check_count("images", self.images, limits)
        options = read_options({name: _value(name, value) for name, value in self.parameters.items()})
        names = self.outputs.names(self.wanted, options.coverage)
        return Request([_image(element) for element in self.images], _needed(options, names), self.outputs.form(names))


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
