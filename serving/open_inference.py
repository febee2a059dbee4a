"""The Open Inference Protocol, which KServe calls v2: its request and its answer.

    POST /v2/models/NAME/infer
    {"id": "7", "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["<base64>"]}],
     "outputs": [{"name": "posterior"}]}

The one tensor, `images`, holds encoded images: as base64 in JSON, or in binary behind the JSON, each after its length
in four bytes, where the header Inference-Header-Content-Length says how long the JSON is. The answer's tensors are
those of `tensors.py`; `features` only if it is named among `outputs`, `possible` only with the parameter `coverage`,
{"coverage": 0.9}. The protocol knows no error per image: the first one is the request's. The answer is JSON, whatever
`binary_data` and `binary_data_output` wish; any other parameter is refused.

It is there by HTTP alone. TorchServe can speak it by gRPC, but under a name of its own that no public client calls, and
a worker dies of every error that it answers there.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from serving.errors import BadRequest, ServingError, shown
from serving.parameters import Options, read_coverage
from serving.respond import Answer, Result, StatusAndBody
from serving.tensors import TENSORS, check_possible, parts

INPUT = "images"
KEYS = ("id", "inputs", "model_name", "outputs", "parameters")
TENSOR_KEYS = ("name", "shape", "datatype", "data", "parameters")
OUTPUT_KEYS = ("name", "parameters")
MAX_DIMENSIONS = 4  # of a shape; one is enough for a list of images
MAX_ID = 1024  # characters
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorRequest:
    """A request in this protocol.

    Attributes:
        images: base64 text, or encoded images.
        id: the client's name of the request.
        outputs: names of the tensors that it wants; None for all but the features.
        coverage: the share of images whose right label is to be possible; None asks for no such tensor.
    """

    images: Sequence[str] | Sequence[bytes]
    id: str | None
    outputs: tuple[str, ...] | None
    coverage: float | None = None

    @property
    def options(self) -> Options:
        """What the answers must hold."""
        wanted = {"probabilities", "components"}
        returns = wanted | {"features"} if "features" in (self.outputs or ()) else wanted
        return Options(1, frozenset(returns), coverage=self.coverage)

    def respond(self, results: Sequence[Result]) -> StatusAndBody:
        """The HTTP status and body for what the images got."""
        for position, result in enumerate(results):
            if isinstance(result, ServingError):
                return refuse_tensors(result, f"images[{position}]: ")
        answers = [result for result in results if not isinstance(result, ServingError)]
        try:
            outputs = [_tensor(name, answers) for name in self.outputs or _names_of(answers)]
        except KeyError as exc:
            return refuse_tensors(BadRequest(f"outputs must be tensors that this model has, got {exc.args[0]!r}"))
        model = answers[0]["model"]
        body = {"model_name": model["name"], "model_version": model["version"], "outputs": outputs}
        return 200, body if self.id is None else body | {"id": self.id}


def refuse_tensors(error: ServingError, where: str = "") -> StatusAndBody:
    """The HTTP status and body of a request that is refused; `where` leads the message."""
    return error.status, {"error": f"{error.code}: {where}{error}"}


def read_tensors(body: dict[str, Any], binary: bytes) -> TensorRequest:
    """Read a request.

    Args:
        body: its JSON.
        binary: what follows the JSON.

    Raises:
        BadRequest: if it breaks the protocol, or asks for a part of it that is not supported.
        BadParameter: if the coverage breaks its rule.
    """
    _check_keys("request", body, KEYS)
    parameters = _check_parameters("request", body, {"binary_data_output": bool, "coverage": float})
    inputs = body["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest(f"inputs must be a list of one tensor, {INPUT}, got {shown(inputs)}")
    name, datatype = inputs[0].get("name"), inputs[0].get("datatype")
    if name != INPUT or datatype != "BYTES":
        raise BadRequest(f"the tensor must be {INPUT} of datatype BYTES, got {shown(name)} of {shown(datatype)}")
    images = _images(inputs[0], binary)
    _text("model_name", body.get("model_name"))
    request_id = _text("id", body.get("id"))
    if request_id is not None and len(request_id) > MAX_ID:  # it comes back in the answer
        raise BadRequest(f"id must be text of at most {MAX_ID} characters, got {len(request_id)}")
    coverage = read_coverage(parameters["coverage"]) if "coverage" in parameters else None
    return TensorRequest(images, request_id, _wanted(body.get("outputs"), coverage), coverage)


def _check_keys(what: str, found: dict[str, Any], allowed: Sequence[str]) -> None:
    if unknown := [key for key in found if key not in allowed]:
        raise BadRequest(f"{what} must have no keys but {', '.join(allowed)}, got {shown(unknown)}")


def _check_parameters(what: str, owner: dict[str, Any], allowed: Mapping[str, type]) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters of the {what} must be an object, got {shown(parameters)}")
    for name, value in parameters.items():
        if name not in allowed:
            raise BadRequest(f"parameters of the {what} must be none but {', '.join(allowed)}, got {shown(name)}")
        if type(value) is not allowed[name]:
            raise BadRequest(f"{name} must be {allowed[name].__name__}, got {shown(value)}")
    return parameters


def _images(tensor: dict[str, Any], binary: bytes) -> Sequence[str] | Sequence[bytes]:
    _check_keys("the tensor", tensor, TENSOR_KEYS)
    shape = tensor.get("shape")
    if not _is_shape(shape):
        raise BadRequest(f"shape must be a list of 1 to {MAX_DIMENSIONS} whole numbers, got {shown(shape)}")
    parameters = _check_parameters("tensor", tensor, {"binary_data_size": int})
    if "binary_data_size" in parameters and "data" in tensor:
        raise BadRequest("the tensor must be in JSON or in binary, got both")
    if "binary_data_size" not in parameters and binary:
        raise BadRequest(f"binary_data_size must be the bytes behind the JSON, {len(binary)}, got none")
    images = _split(binary, parameters["binary_data_size"]) if "binary_data_size" in parameters else tensor.get("data")
    if not isinstance(images, list) or len(images) != math.prod(shape):
        count = len(images) if isinstance(images, list) else "none"
        raise BadRequest(f"data must be a list of as many images as the shape {shape} says, got {count}")
    return images


def _is_shape(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DIMENSIONS:
        return False
    return all(type(side) is int and side >= 0 for side in value)


def _split(binary: bytes, size: int) -> list[bytes]:
    """The elements of a BYTES tensor in binary."""
    if size != len(binary):
        raise BadRequest(f"binary_data_size must be the bytes behind the JSON, {len(binary)}, got {size}")
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


def _text(what: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise BadRequest(f"{what} must be text, got {shown(value)}")


def _wanted(outputs: Any, coverage: float | None) -> tuple[str, ...] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise BadRequest(f"outputs must be a list of objects, got {shown(outputs)}")
    names: list[str] = []
    for output in outputs:
        _check_keys("an output", output, OUTPUT_KEYS)
        _check_parameters("output", output, {"binary_data": bool})
        name = output.get("name")
        if not isinstance(name, str) or name not in TENSORS or name in names:
            raise BadRequest(f"outputs must name tensors of {', '.join(TENSORS)}, each once, got {shown(name)}")
        names.append(name)
    check_possible(names, coverage)
    return tuple(names)


def _names_of(answers: Sequence[Answer]) -> list[str]:
    """The tensors that there are of some answers."""
    keys = {key for answer in answers for key in answer}
    return [name for name, tensor in TENSORS.items() if tensor.key in keys]


def _tensor(name: str, answers: Sequence[Answer]) -> dict[str, Any]:
    data = parts(name, answers)
    shape, flat = [len(data)], data
    while isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [item for row in flat for item in row]
    return {"name": name, "datatype": TENSORS[name].datatype, "shape": shape, "data": flat}
