"""Triton's Python model: its requests in, tensors of the data plane's answers out.

Triton imports `NAME/VERSION/model.py`, which is this class, once an instance, each in a process of its own (a "stub").
Several requests of a dynamic batch come by one call and are answered by one call of the graph.
"""

import gc
import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from serving.bundle import Bundle, Manifest
from serving.cores import threads
from serving.data_plane import DataPlane
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.request_log import RequestLog
from serving.respond import Answer
from serving.tensors import TENSORS
from serving.triton.message import Outputs, TensorMessage
from serving.triton.page import Page
from serving.triton.served import Served

DTYPES: dict[str, type] = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}
INPUT = "images"


class TritonPythonModel:
    """One instance of one version of a model."""

    plane: DataPlane
    page: Page
    outputs: Outputs
    all_names: frozenset[str]

    def initialize(self, args: dict[str, str]) -> None:
        """Load, verify and warm up the bundle in the version's folder; the model is ready when this returns.

        Raises:
            ServingError: if the bundle is not what its digests say, the device is not there, or the runtime computes
                other than the golden answers. Triton reports the model as unavailable, with the error.
        """
        folder = Path(args["model_repository"], args["model_version"])
        served = Served.read(folder)
        settings, bundle = served.settings, Bundle.load(folder)
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        predictor = Predictor(
            bundle, settings.runtime, device, threads(settings), settings.limits, precision=settings.precision
        )
        predictor.warm_up()
        manifest = bundle.manifest
        self.plane = DataPlane(predictor, Metrics(manifest), _log(served, manifest), settings.batch_size)
        self.page = Page(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), triton)
        self.outputs = Outputs(manifest)
        self.all_names = frozenset(output["name"] for output in json.loads(args["model_config"])["output"])
        gc.collect()
        gc.freeze()  # what has been loaded stays: no collection need look through it again

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch."""
        return self.plane.exchange([self._message(request) for request in requests], _response)

    def finalize(self) -> None:
        """Finish counting."""
        self.plane.close()
        self.page.close()

    def _message(self, request: Any) -> TensorMessage:
        """One request; Triton says of one that names no outputs that it names all, so these are the same."""
        wanted = frozenset(request.requested_output_names())
        return TensorMessage(
            images=triton.get_input_tensor_by_name(request, INPUT).as_numpy().ravel().tolist(),
            wanted=None if wanted == self.all_names else wanted,
            parameters=json.loads(request.parameters() or "{}"),
            outputs=self.outputs,
            request_id=request.request_id(),
        )


def _log(served: Served, manifest: Manifest) -> RequestLog | None:
    if served.request_log is None:
        return None
    folder = Path(served.request_log)
    folder.mkdir(parents=True, exist_ok=True)
    return RequestLog(folder, manifest.name, str(manifest.version))


def _response(status: int, body: Answer) -> Any:
    if status != HTTPStatus.OK:
        error = body["error"]
        return triton.InferenceResponse(
            error=triton.TritonError(f"{error['code']}: {error['message']}", _error_code(status))
        )
    return triton.InferenceResponse([triton.Tensor(name, _array(name, values)) for name, values in body.items()])


def _error_code(status: int) -> Any:
    """Triton's name of an error, of which it makes an HTTP and a gRPC status."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return triton.TritonError.UNAVAILABLE
    return triton.TritonError.INVALID_ARG if status < HTTPStatus.INTERNAL_SERVER_ERROR else triton.TritonError.INTERNAL


def _array(name: str, values: list[Any]) -> np.ndarray[Any, Any]:
    tensor = TENSORS.get(name)
    if tensor is None or tensor.datatype == "BYTES":
        return np.array([text.encode() for text in values], dtype=np.object_)
    return np.array(values, dtype=DTYPES[tensor.datatype])
