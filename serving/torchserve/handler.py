"""TorchServe's handler: its context and headers in, the data plane's replies out.

Workers import this module by name (see `archive.py`), with the project on their PYTHONPATH. TorchServe wants exactly
one class here. Whatever it raises would fail the whole batch, so nothing is raised once the model is loaded.
"""

import gc
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from serving.bundle import Bundle
from serving.cores import threads
from serving.data_plane import DataPlane
from serving.errors import Draining
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.request import Message
from serving.request_log import RequestLog
from serving.settings import WorkerSettings
from serving.torchserve.door import Door
from serving.torchserve.heartbeat import HEARTBEATS, Heartbeat
from serving.torchserve.patches.receiver import aside
from serving.torchserve.state import LOGS, state_of_worker, tmp_of_worker

ID_HEADER = "x-request-id"
JSON_LENGTH_HEADER = "inference-header-content-length"
MAX_CHARACTERS = 128  # of a header
RETRY_AFTER_S = "1"


class ImageHandler:
    """Hands batches to the data plane while the door is open."""

    plane: DataPlane
    door: Door
    heartbeat: Heartbeat

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
        bundle = Bundle.load(context.system_properties["model_dir"])
        predictor = Predictor(
            bundle, settings.runtime, device, threads(settings), settings.limits, precision=settings.precision
        )
        predictor.warm_up()
        state, manifest = state_of_worker(), bundle.manifest
        self.door = Door(tmp_of_worker())
        log = RequestLog(state / LOGS, manifest.name, str(manifest.version)) if state else None
        self.plane = DataPlane(predictor, Metrics(manifest), log, settings.batch_size, aside())
        self.heartbeat = Heartbeat(state / HEARTBEATS if state else None)
        gc.collect()
        gc.freeze()  # what has been loaded stays: no collection need look through it again

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of the batch, or refuse all of them while the server drains."""
        messages = [_message(fields, context, index) for index, fields in enumerate(data)]
        with self.heartbeat.at_work(), self.door.entered() as is_open:
            replies = self.plane.answer(messages, None if is_open else Draining())
        for index, reply in enumerate(replies):
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
            context.set_response_content_type(index, reply.content_type)
            if reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
                context.set_response_header(index, "retry-after", RETRY_AFTER_S)
        return [reply.body for reply in replies]


def _message(fields: Mapping[str, Any], context: Any, index: int) -> Message:
    """One request: its raw body stands alone under `body`, the parts of a form under their names."""
    headers = context.get_all_request_header(index)
    request_id = _header(headers, ID_HEADER) or str(context.get_request_id(index))
    if set(fields) != {"body"}:
        return Message(parts=fields, request_id=request_id)
    of_body = headers.get("body")  # TorchServe files a part's headers under its name
    content_type = of_body.get("content-type") if isinstance(of_body, dict) else None
    return Message(
        body=fields["body"],
        content_type=content_type or "",
        json_length=_header(headers, JSON_LENGTH_HEADER),
        request_id=request_id,
    )


def _header(headers: Mapping[str, Any], wanted: str) -> str | None:
    """A request's header, whatever the case of its name, cut to a sane length; TorchServe keeps the client's case."""
    for name, value in headers.items():
        if name.lower() == wanted and isinstance(value, str):
            return value[:MAX_CHARACTERS]
    return None
