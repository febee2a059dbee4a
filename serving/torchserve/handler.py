"""TorchServe's handler: a batch of requests in, one JSON body and status for each out.

Workers import this module by name (see `archive.py`), with the project on their PYTHONPATH. TorchServe wants exactly
one class here. Whatever it raises would fail the whole batch, so nothing is raised once the model is loaded.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

from serving.errors import BadRequest, Draining, ServingError
from serving.predictor import Predictor
from serving.request import Request, read
from serving.respond import Answer, error_body, respond
from serving.torchserve.drain import Door
from serving.torchserve.metrics import Metrics
from serving.torchserve.request_log import RequestLog, request_id
from serving.torchserve.state import LOGS, state_of_worker

logger = logging.getLogger(__name__)


class ImageHandler:
    """Answers the images of all requests of a batch by one call of the predictor, and tells of each."""

    predictor: Predictor
    door: Door
    metrics: Metrics
    log: RequestLog | None

    def initialize(self, context: Any) -> None:
        """Load, verify and warm up the bundle in the model's folder; the worker is ready when this returns.

        Raises:
            ServingError: if the bundle is not what its digests say, the device is not there, or the runtime computes
                other than the golden answers. The worker dies of it, which the launcher reports.
        """
        logging.getLogger().setLevel(logging.WARNING)  # TorchServe's worker says much, and Java reads every line

        config = context.model_yaml_config
        settings = config["handler"]
        threads = settings["threads"] or max(1, len(os.sched_getaffinity(0)) // config["minWorkers"])
        gpu = context.system_properties["gpu_id"]
        device = "cpu" if gpu is None else f"cuda:{gpu}"
        self.predictor = Predictor.open(context.system_properties["model_dir"], settings["runtime"], device, threads)
        self.predictor.warm_up()
        state = state_of_worker()
        self.door = Door(state)
        manifest = self.predictor.bundle.manifest
        self.metrics = Metrics(manifest)
        self.log = RequestLog(state / LOGS, manifest.name, str(manifest.version)) if state else None

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of the batch, or refuse all of them while the server drains."""
        began = time.perf_counter()
        with self.door.entered() as is_open:
            responses = self._respond(data, context) if is_open else [_failed(Draining())] * len(data)
        for index, (status, _) in enumerate(responses):
            context.set_response_status(status, HTTPStatus(status).phrase, index)
            context.set_response_content_type(index, "application/json")
        bodies = [orjson.dumps(body) for _, body in responses]
        self._tell(responses, context, time.perf_counter() - began)
        return bodies

    def _tell(self, responses: Sequence[tuple[int, Answer]], context: Any, seconds: float) -> None:
        """Count and log the requests of a batch."""
        entries = []
        for index, (status, body) in enumerate(responses):
            images = body.get("predictions", [body])
            self.metrics.count_request(status, images)
            name = request_id(context.get_all_request_header(index), context.get_request_id(index))
            errors = [image["error"]["code"] for image in images if "error" in image]
            entries.append({"request_id": name, "status": status, "images": len(images), "errors": errors})
        if self.log is not None:
            together = {"batch": len(responses), "seconds": round(seconds, 6)}
            self.log.write([entry | together for entry in entries])

    def _respond(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[tuple[int, Answer]]:
        requests = [self._read(fields, context, index) for index, fields in enumerate(data)]
        answers = iter(self._answer([request for request in requests if isinstance(request, Request)]))
        return [_failed(request) if isinstance(request, ServingError) else next(answers) for request in requests]

    def _read(self, fields: Mapping[str, Any], context: Any, index: int) -> Request | ServingError:
        headers = context.get_request_header(index, "body")  # TorchServe files a part's headers under its name
        content_type = headers.get("content-type") if isinstance(headers, dict) else None
        try:
            return read(fields, content_type or "", self.predictor.limits)
        except BadRequest as error:
            return error
        except Exception:
            return _unexpected()

    def _answer(self, requests: Sequence[Request]) -> list[tuple[int, Answer]]:
        """Answer requests together, or, if that fails unexpectedly, each alone to spare the others."""
        if not requests:
            return []
        try:
            work = [(request.images, request.options) for request in requests]
            self.metrics.count_batch(sum(len(images) for images, _ in work))
            results = self.predictor.predict_together(work, self.metrics.stage)
            return [respond(r, single=request.single) for r, request in zip(results, requests, strict=True)]
        except Exception:
            error = _unexpected()
        if len(requests) > 1:
            return [self._answer([request])[0] for request in requests]
        return [_failed(error)]


def _failed(error: ServingError) -> tuple[int, Answer]:
    return error.status, error_body(error)


def _unexpected() -> ServingError:
    logger.exception("A request failed unexpectedly")
    return ServingError("the server failed to answer this request; its log says why")
