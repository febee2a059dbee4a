"""TorchServe's handler: a batch of requests in, one JSON body and status for each out.

Workers import this module by name (see `archive.py`), with the project on their PYTHONPATH. TorchServe wants exactly
one class here. Whatever it raises would fail the whole batch, so nothing is raised once the model is loaded.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import orjson

from serving.bundle import Bundle
from serving.cores import threads
from serving.errors import BadRequest, Draining, ServingError
from serving.metrics import Metrics, Stopwatch
from serving.predictor import Predictor, Stage
from serving.request import Request, read
from serving.request_log import ID_HEADER, RequestLog, header
from serving.respond import Result
from serving.settings import WorkerSettings
from serving.torchserve.door import Door
from serving.torchserve.state import LOGS, state_of_worker

JSON_LENGTH_HEADER = "inference-header-content-length"

logger = logging.getLogger(__name__)


class ImageHandler:
    """Answers the images of all requests of a batch by one call of the predictor, and tells of each."""

    predictor: Predictor
    door: Door
    metrics: Metrics
    log: RequestLog | None
    aside: ThreadPoolExecutor

    def initialize(self, context: Any) -> None:
        """Load, verify and warm up the bundle in the model's folder; the worker is ready when this returns.

        Raises:
            ServingError: if the bundle is not what its digests say, the device is not there, or the runtime computes
                other than the golden answers. The worker dies of it, which the launcher reports.
        """
        logging.getLogger().setLevel(logging.WARNING)  # TorchServe's worker says much, and Java reads every line

        settings = WorkerSettings.model_validate(context.model_yaml_config["handler"])
        gpu = context.system_properties["gpu_id"]
        device = "cpu" if gpu is None else f"cuda:{gpu}"
        model_dir = context.system_properties["model_dir"]
        self.predictor = Predictor(
            Bundle.load(model_dir),
            settings.runtime,
            device,
            threads(settings),
            settings.limits,
            precision=settings.precision,
        )
        self.predictor.warm_up()
        state = state_of_worker()
        self.door = Door(state)
        manifest = self.predictor.bundle.manifest
        self.metrics = Metrics(manifest)
        self.log = RequestLog(state / LOGS, manifest.name, str(manifest.version)) if state else None
        self.aside = ThreadPoolExecutor(max_workers=1)  # counts and logs while the answers are on their way

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of the batch, or refuse all of them while the server drains."""
        began = time.perf_counter()
        stopwatch = Stopwatch()
        with self.door.entered() as is_open:
            requests = [self._read(f, context, n) if is_open else Request([Draining()]) for n, f in enumerate(data)]
            results = self._answer(requests, stopwatch)
        replies = [request.reply(result) for request, result in zip(requests, results, strict=True)]
        for index, (status, _) in enumerate(replies):
            context.set_response_status(status, HTTPStatus(status).phrase, index)
            context.set_response_content_type(index, "application/json")
        bodies = [orjson.dumps(body) for _, body in replies]
        names = [_name(context, index) for index in range(len(data))]
        seconds = time.perf_counter() - began
        self.aside.submit(self._tell, names, [status for status, _ in replies], results, seconds, stopwatch.seconds)
        return bodies

    def _read(self, fields: Mapping[str, Any], context: Any, index: int) -> Request:
        """One request; what is wrong with it as a whole stands in the place of its images."""
        headers = context.get_all_request_header(index)
        of_body = headers.get("body")  # TorchServe files a part's headers under its name
        content_type = of_body.get("content-type") if isinstance(of_body, dict) else None
        try:
            return read(fields, content_type or "", self.predictor.limits, header(headers, JSON_LENGTH_HEADER))
        except BadRequest as error:
            return Request([error])
        except Exception:
            return Request([_unexpected()])

    def _answer(self, requests: Sequence[Request], stopwatch: Stopwatch) -> list[list[Result]]:
        """What each image of each request gets: all by one call, or, if that fails unexpectedly, request by request."""
        try:
            work = [(request.images, request.options) for request in requests]
            return self.predictor.predict_together(work, stopwatch.time)
        except Exception:
            error = _unexpected()
        return [[error]] if len(requests) == 1 else [self._answer([request], stopwatch)[0] for request in requests]

    def _tell(
        self,
        names: Sequence[str],
        statuses: Sequence[int],
        results: Sequence[Sequence[Result]],
        seconds: float,
        stages: Mapping[Stage, float],
    ) -> None:
        """Count and log the requests of a batch."""
        try:
            self.metrics.count_batch(sum(map(len, results)), seconds, stages)
            entries = []
            for name, status, images in zip(names, statuses, results, strict=True):
                self.metrics.count_request(status, images)
                errors = [image.code for image in images if isinstance(image, ServingError)]
                entries.append({"request_id": name, "status": status, "images": len(images), "errors": errors})
            if self.log is not None:
                together = {"batch": len(results), "seconds": round(seconds, 6)}
                self.log.write([entry | together for entry in entries])
        except Exception:
            logger.exception("A batch could not be counted and logged")


def _name(context: Any, index: int) -> str:
    """What a request is called in the log."""
    name = header(context.get_all_request_header(index), ID_HEADER) or context.get_request_id(index)
    return str(name)


def _unexpected() -> ServingError:
    logger.exception("A request failed unexpectedly")
    return ServingError("the server failed to answer this request; its log says why")
