"""The Open Inference Protocol, which KServe calls v2: its request and its answer.

    POST /v2/models/NAME/infer
    {"id": "7", "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["<base64>"]}],
     "outputs": [{"name": "posterior"}]}

The one tensor, `images`, holds encoded images: as base64 in JSON, or in binary behind the JSON, each after its length
in four bytes, where the header Inference-Header-Content-Length says how long the JSON is. The answer's tensors are
`label` (N), `posterior` (N, C), `component` (N), `responsibilities` (N, C, K), `log_density` (N) and, only if it is
named among `outputs`, `features` (N, D). The protocol knows no error per image: the first one is the request's.

It is there by HTTP alone. TorchServe can speak it by gRPC, but under a name of its own that no public client calls, and
a worker dies of every error that it answers there.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import BadRequest, ServingError
from serving.respond import Answer, Options, Result

INPUT = "images"
KEYS = ("id", "inputs", "model_name", "outputs", "parameters")
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class _Output:
    datatype: str
    of_answer: Callable[[Answer], Any]


_OUTPUTS = {
    "label": _Output("BYTES", lambda answer: answer["label"]),
    "posterior": _Output("FP32", lambda answer: list(answer["probabilities"].values())),
    "component": _Output("INT64", lambda answer: answer["component"]),
    "responsibilities": _Output("FP32", lambda answer: list(answer["components"].values())),
    "log_density": _Output("FP32", lambda answer: answer["log_density"]),
    "features": _Output("FP32", lambda answer: answer["features"]),
}


@dataclass(frozen=True)
class TensorRequest:
    """A request in this protocol.

    Attributes:
        images: base64 text, or encoded images.
        id: the client's name of the request.
        outputs: names of the tensors that it wants; None for all but the features.
    """

    images: Sequence[str] | Sequence[bytes]
    id: str | None
    outputs: tuple[str, ...] | None

    @property
    def options(self) -> Options:
        """What the answers must hold."""
        wanted = {"probabilities", "components"}
        return Options(1, frozenset(wanted | {"features"} if "features" in (self.outputs or ()) else wanted))

    def reply(self, results: Sequence[Result]) -> tuple[int, Answer]:
        """The HTTP status and body for what the images got."""
        for position, result in enumerate(results):
            if isinstance(result, ServingError):
                return _refusal(result, f"images[{position}]: ")
        answers = [result for result in results if not isinstance(result, ServingError)]
        try:
            outputs = [_tensor(name, answers) for name in self.outputs or _names_of(answers[0])]
        except KeyError as exc:
            return _refusal(BadRequest(f"outputs must be tensors that this model has, got {exc.args[0]!r}"))
        model = answers[0]["model"]
        body = {"model_name": model["name"], "model_version": model["version"], "outputs": outputs}
        return 200, body if self.id is None else body | {"id": self.id}


def refuse(results: Sequence[Result]) -> tuple[int, Answer]:
    """The HTTP status and body of a request that could not be read; its error is the only result."""
    (error,) = results
    return _refusal(error) if isinstance(error, ServingError) else (200, error)


def read_tensors(body: dict[str, Any], binary: bytes) -> TensorRequest:
    """Read a request.

    Args:
        body: its JSON.
        binary: what follows the JSON.

    Raises:
        BadRequest: if it breaks the protocol.
    """
    if unknown := sorted(set(body) - set(KEYS)):
        raise BadRequest(f"request must have no keys but {', '.join(KEYS)}, got {unknown}")
    inputs = body["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest(f"inputs must be a list of one tensor, {INPUT}, got {str(inputs)[:60]}")
    name, datatype = inputs[0].get("name"), inputs[0].get("datatype")
    if name != INPUT or datatype != "BYTES":
        raise BadRequest(f"the tensor must be {INPUT} of datatype BYTES, got {name!r} of {datatype!r}")
    images = _images(inputs[0], binary)
    return TensorRequest(images, _id(body.get("id")), _wanted(body.get("outputs")))


def _refusal(error: ServingError, where: str = "") -> tuple[int, Answer]:
    return error.status, {"error": f"{error.code}: {where}{error}"}


def _images(tensor: dict[str, Any], binary: bytes) -> Sequence[str] | Sequence[bytes]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise BadRequest(f"shape must be a list of whole numbers, got {str(shape)[:60]}")
    parameters = tensor.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters of a tensor must be an object, got {str(parameters)[:60]}")
    size = parameters.get("binary_data_size")
    images = tensor.get("data") if size is None else _split(binary, size)
    if not isinstance(images, list) or len(images) != math.prod(shape):
        count = len(images) if isinstance(images, list) else "none"
        raise BadRequest(f"data must be a list of as many images as the shape {shape} says, got {count}")
    return images


def _split(binary: bytes, size: Any) -> list[bytes]:
    """The elements of a BYTES tensor in binary."""
    if size != len(binary):
        raise BadRequest(f"binary_data_size must be the bytes behind the JSON, {len(binary)}, got {size!r}")
    parts, start = [], 0
    while start < len(binary):
        if start + LENGTH.size > len(binary):
            raise BadRequest("each binary element must follow its length in 4 bytes, got a part of a length")
        (length,) = LENGTH.unpack_from(binary, start)
        start += LENGTH.size
        if start + length > len(binary):
            raise BadRequest(f"a binary element must be there whole, got {len(binary) - start} of {length} bytes")
        parts.append(binary[start : start + length])
        start += length
    return parts


def _id(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise BadRequest(f"id must be text, got {str(value)[:60]}")


def _wanted(outputs: Any) -> tuple[str, ...] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and o.get("name") in _OUTPUTS for o in outputs):
        raise BadRequest(f"outputs must name tensors of {', '.join(_OUTPUTS)}, got {str(outputs)[:60]}")
    return tuple(output["name"] for output in outputs)


def _names_of(answer: Answer) -> list[str]:
    generative = ["component", "responsibilities", "log_density"] if "log_density" in answer else []
    return ["label", "posterior", *generative]


def _tensor(name: str, answers: Sequence[Answer]) -> dict[str, Any]:
    output = _OUTPUTS[name]
    try:
        data = [output.of_answer(answer) for answer in answers]
    except KeyError:
        raise KeyError(name) from None
    shape, flat = [len(data)], data
    while isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [item for row in flat for item in row]
    return {"name": name, "datatype": output.datatype, "shape": shape, "data": flat}
